// The grid of queries: one stop of the tab key, arrow keys within.
function queryGrid(onChoose) {
  const { ids, labels, predicted, correct } = page.query;
  const known = correct.some((flag) => flag >= 0), guessed = predicted.some((label) => label >= 0);
  const cards = ids.map((id, query) => queryCard(query));
  const list = element("ul", { class: page.texts ? "grid texts" : "grid", role: "listbox", id: "grid", "aria-label": "Queries", "aria-describedby": "found" }, ...cards);
  const found = element("p", { id: "found", class: "quiet", role: "status" });
  const search = element("input", { type: "search", id: "search", inputmode: page.files ? "text" : "numeric", placeholder: page.files ? "id or file" : "id", autocomplete: "off" });
  const own = classChoice("true-class", labels), guess = guessed ? classChoice("predicted-class", predicted) : null;
  const wrongOnly = known ? element("input", { type: "checkbox", id: "wrong-only" }) : null;
  const filters = element("form", { class: "filters", role: "search", "aria-label": "Filter queries" },
    field("True class", own), guess && field("Predicted", guess), field("Search", search),
    wrongOnly && element("label", { class: "check", for: "wrong-only" }, wrongOnly, "wrong only"));

  let visible = cards.map((_, query) => query), current = 0;

  function filter() {
    const text = search.value.trim().replace(/^#/, "");
    visible = cards.map((_, query) => query).filter((query) =>
      (own.value === "" || labels[query] === Number(own.value)) && (!guess || guess.value === "" || predicted[query] === Number(guess.value)) &&
      (!wrongOnly?.checked || correct[query] === 0) && (text === "" || String(ids[query]).includes(text) || fileOf("query", query).includes(text)));
    if (text !== "") visible.sort((a, b) => (String(ids[b]) === text) - (String(ids[a]) === text) || a - b);
    const shown = new Set(visible);
    cards.forEach((card, query) => { card.hidden = !shown.has(query); });
    const wrong = visible.filter((query) => correct[query] === 0).length;
    const of = visible.length === cards.length ? "" : " of " + whole(cards.length);
    found.textContent = visible.length === 0 ? "No query is like this." : `${whole(visible.length)}${of} ${visible.length === 1 && !of ? "query" : "queries"}` + (known ? `, ${whole(wrong)} wrong` : "");
    if (visible.length && !shown.has(current)) point(visible[0]);
  }

  function point(query) {
    cards[current].tabIndex = -1;
    current = query;
    cards[current].tabIndex = 0;
  }

  // Scrolls the grid to a card, and with `page` all else; again in the next frames, since cards get their sizes when shown.
  function reveal(query, page, frames = 4) {
    const card = cards[query], end = card.offsetTop + card.offsetHeight;
    if (card.offsetTop < list.scrollTop) list.scrollTop = card.offsetTop - 6;
    else if (end > list.scrollTop + list.clientHeight) list.scrollTop = end - list.clientHeight + 6;
    if (page) card.scrollIntoView({ block: "nearest" });
    if (frames) requestAnimationFrame(() => { if (query === current) reveal(query, page, frames - 1); });
  }

  function choose(query, focus = false, page = false) {
    for (const card of list.querySelectorAll("[aria-selected=true]")) card.setAttribute("aria-selected", "false");
    point(query);
    cards[query].setAttribute("aria-selected", "true");
    if (focus) cards[query].focus({ preventScroll: true });
    reveal(query, page);
  }

  function perRow() {
    const tops = visible.slice(0, 60).map((query) => cards[query].offsetTop);
    return Math.max(1, tops.filter((top) => top === tops[0]).length);
  }

  list.addEventListener("keydown", (event) => {
    const place = visible.indexOf(current), row = perRow();
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row, PageDown: 5 * row, PageUp: -5 * row, Home: -place, End: visible.length - 1 - place };
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in steps) {
      event.preventDefault();
      const next = visible[Math.min(visible.length - 1, Math.max(0, place + steps[event.key]))];
      if (next !== undefined && next !== current) { choose(next, true, true); onChoose(next, false); }
    } else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); onChoose(current, true); }
  });
  list.addEventListener("click", (event) => {
    const card = event.target.closest("[role=option]");
    if (card) { choose(Number(card.dataset.query), true); onChoose(Number(card.dataset.query), true); }
  });
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => { event.preventDefault(); if (visible.length) { choose(visible[0]); onChoose(visible[0], true); } });
  cards[0].tabIndex = 0;
  filter();
  const step = (by) => visible[Math.min(visible.length - 1, Math.max(0, visible.indexOf(current) + by))] ?? current;
  const reset = () => { filters.reset(); filter(); };
  return { element: element("section", { class: "queries", "aria-label": "Queries" }, filters, found, list), choose, step, reset };
}

function queryCard(query) {
  const { ids, labels, predicted, correct } = page.query;
  const truth = className(labels[query]), wrong = correct[query] === 0;
  const guess = predicted[query] >= 0 ? className(predicted[query]) : wrong ? "another class" : "";
  const told = `query ${ids[query]}${fileTold("query", query)}, ${truth}` + (correct[query] < 0 ? "" : wrong ? `, wrongly predicted ${guess}` : ", rightly predicted");
  const text = page.texts ? element("span", { class: "text" }, textOf("query", query)) : null;
  const plain = page.texts || page.sheets ? null : element("span", { class: "plain" }, "#" + ids[query]);
  const card = element("li", { role: "option", class: "card" + (wrong ? " wrong" : ""), tabindex: "-1", "aria-selected": "false", "aria-label": told, title: told },
    picture("query", query, "", true), text, plain,
    element("span", { class: "truth" }, truth), wrong ? element("span", { class: "guess" }, guess) : null, plain ? null : idTag("query", query), fileTag("query", query));
  card.dataset.query = query;
  return card;
}

function classChoice(id, labels) {
  const counts = new Map();
  for (const label of labels) if (label >= 0) counts.set(label, (counts.get(label) ?? 0) + 1);
  const options = [...counts].sort((a, b) => a[0] - b[0]).map(([label, number]) => element("option", { value: label }, `${className(label)} (${whole(number)})`));
  return element("select", { id }, element("option", { value: "" }, "all"), ...options);
}

const field = (name, input) => element("label", { class: "field", for: input.id }, element("span", {}, name), input);
