// Terms: where one first stands in a text of ours it is a button that shows its definition, and so is a method's name.
const termOf = new Map(page.terms.flatMap((term) => term.words.map((word) => [word.toLowerCase(), term])));
const literally = (word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const termWords = [...termOf.keys()].sort((a, b) => b.length - a.length).map(literally).join("|");
const termPattern = new RegExp(`(?<![\\p{L}\\p{N}-])(?:${termWords})(?![\\p{L}\\p{N}-])`, "giu");

function termButton(text, term) {
  return element("button", { type: "button", class: "term", "aria-haspopup": "dialog", onclick: (event) => define(term, event.currentTarget) }, text);
}

// A text of ours with its terms as buttons; those already seen stay plain.
function worded(text, seen = new Set()) {
  const parts = [];
  let from = 0;
  for (const { 0: word, index } of text.matchAll(termPattern)) {
    const term = termOf.get(word.toLowerCase());
    if (seen.has(term)) continue;
    seen.add(term);
    parts.push(text.slice(from, index), termButton(word, term));
    from = index + word.length;
  }
  return [...parts, text.slice(from)].filter(Boolean);
}

// A method's name, which shows what the method does where that is known; options stay as they are.
function methodName(name, kind = "attribution") {
  const head = name.split("(")[0], about = page.about[kind][head];
  if (!about) return breakable(name);
  return [termButton(head, { name: head, meaning: about, source: "" }), ...breakable(name.slice(head.length))];
}

// The terms that stand only within a drawing, where nothing can be clicked.
function termsIn(texts, seen) {
  const found = texts.flatMap((text) => worded(text, seen).filter((part) => typeof part !== "string"));
  return found.length ? element("p", { class: "quiet" }, "In the figure: ", ...found.flatMap((part, place) => (place ? [", ", part] : [part])), ".") : null;
}

// One definition at a time; Escape, a tap elsewhere or "Close" ends it.
function define(term, asker) {
  const box = document.getElementById("definition");
  if (!box.showPopover) { // an old browser: the list at the end of the page
    document.getElementById("terms").open = true;
    document.getElementById("terms").scrollIntoView();
    return;
  }
  const close = element("button", { type: "button", onclick: () => box.hidePopover() }, "Close");
  const all = element("button", { type: "button", onclick: () => { box.hidePopover(); const list = document.getElementById("terms"); list.open = true; list.scrollIntoView(); } }, "All terms");
  box.replaceChildren(element("h3", { id: "definition-name" }, term.name), element("p", {}, ...worded(term.meaning + ".", new Set([term]))),
    term.source ? element("p", { class: "quiet" }, "Source: " + term.source) : "", element("div", { class: "jumps" }, close, all));
  if (!box.matches(":popover-open")) box.showPopover();
  const at = box.contains(asker) ? null : asker.getBoundingClientRect();
  if (at && innerWidth > 560) {
    const below = at.bottom + 6, high = box.offsetHeight;
    box.style.left = Math.max(8, Math.min(at.left, innerWidth - box.offsetWidth - 8)) + "px";
    box.style.top = Math.max(8, below + high < innerHeight - 8 ? below : at.top - high - 6) + "px";
  }
  box.focus({ preventScroll: true });
}
