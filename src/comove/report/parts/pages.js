// The other tabs: measured results, likely mislabelled examples, and where everything comes from.
function figurePage(content) {
  const figures = content.figures.map((figure) => {
    const draw = figure.kind === "bars" ? barChart : lineCharts;
    const seen = new Set(), notes = figure.notes.map((note) => element("p", { class: "quiet" }, ...worded(note, seen)));
    const drawn = [figure.title, figure.x, figure.y, ...figure.series.filter((series) => series.control).map((series) => series.name), ...figure.levels.map((level) => level.name)];
    return element("figure", { class: "panel" }, element("figcaption", {}, element("h3", {}, figure.title)),
      figure.kind === "bars" ? null : legend(figure, kindOf(content.id)), responsive((width) => draw(figure, width, kindOf(content.id)), figure.title + "; the numbers are in the table below"),
      figure.crowded ? element("p", { class: "quiet" }, ...worded("Above: all methods together. Below: each with its intervals, the controls beside it in grey.", seen)) : null,
      ...notes, termsIn(drawn, seen), foldedTable(figure.table, figure.title, kindOf(content.id)), provenance(figure.made));
  });
  return element("div", { class: "page" }, element("h2", {}, content.heading), element("p", { class: "about" }, ...worded(content.about)), ...figures, ...keptSections(content.kept));
}

// Whose methods a page compares: names mean one thing to attribution and another to coresets.
const kindOf = (id) => (id === "curves" ? "coreset" : "attribution");

// The first examples that each coreset keeps, beside its curves.
function keptSections(kept) {
  if (!kept) return [];
  return kept.lists.map((list, number) => {
    const section = suspectSection(list, (place) => suspectItem(list, list.members[place], place, [number], kept.lists), `Kept first by ${list.method}`);
    section.append(provenance(kept.made[number]));
    return section;
  });
}

const UNFOLDED = 16; // suspects of a method that are shown at once

function suspectPage(content) {
  const votes = new Map();
  content.lists.forEach((list, number) => { for (const member of list.members) votes.set(member, [...(votes.get(member) ?? []), number]); });
  const sections = content.lists.map((list) => suspectSection(list, (place) => suspectItem(list, list.members[place], place, votes.get(list.members[place]), content.lists)));
  const jumps = sections.map((section, number) => element("button", { type: "button", onclick: () => { section.scrollIntoView(); section.focus({ preventScroll: true }); } }, ...breakable(content.lists[number].method)));
  const shared = [...votes.values()].some((methods) => methods.length > 1) ? " A number on one says how many methods name it." : "";
  const most = Math.max(...content.lists.map((list) => list.members.length));
  return element("div", { class: "page" }, element("h2", {}, "Which labels look wrong?"),
    element("p", { class: "about" }, ...worded(`The ${most === 1 ? "training label" : whole(most) + " training labels"} most suspicious by each method, the most suspicious first.${shared} A label that several methods name deserves the first look; whether it is wrong, only a look can say.`)),
    sections.length > 1 ? element("nav", { class: "jumps", "aria-label": "Methods" }, ...jumps) : null,
    ...sections, provenance(content.made));
}

// The first suspects of a method; the others are folded away. Printing, and a search within the page, unfold them.
function suspectSection(list, item, title = list.method) {
  const kind = page.texts || !page.sheets ? "suspects rows" : "suspects", size = list.members.length;
  const shown = size <= UNFOLDED + 4 ? size : UNFOLDED; // four more are shorter than a fold
  const part = (from, to) => element("ol", { class: kind, start: from + 1 }, ...list.members.slice(from, to).map((_, place) => item(from + place)));
  const rest = size === shown ? null : element("details", { class: "fold" }, element("summary", {}, `The other ${whole(size - shown)}`), part(shown, size));
  return element("section", { class: "panel", tabindex: "-1", "aria-label": title }, element("h3", {}, ...(title !== list.method ? [title] : termOf.has(title) ? worded(title) : methodName(title))),
    list.note ? element("p", { class: "quiet" }, ...worded(list.note)) : null, part(0, shown), rest);
}

function suspectItem(list, member, place, methods, lists) {
  const suggested = list.suggested && list.suggested[place] >= 0 && list.suggested[place] !== page.train.labels[member] ? className(list.suggested[place]) : null;
  const wrong = list.known ? list.known[place] : false;
  const shared = methods.length < 2 ? null : element("span", { class: "badge", title: "also named by " + methods.map((m) => lists[m].method).join(", ") }, String(methods.length));
  const told = `${place + 1}: labelled ${trainClass(member)}`;
  return element("li", { class: "suspect" + (wrong ? " wrong" : ""), title: `${told}, id ${page.train.ids[member]}${fileTold("train", member)}` }, picture("train", member, `${told}, id ${page.train.ids[member]}${fileTold("train", member)}`),
    page.texts ? element("span", { class: "text", dir: "auto" }, textOf("train", member)) : null,
    element("span", { class: "label" }, trainClass(member)), suggested ? element("span", { class: "suggested" }, suggested + "?") : null,
    idTag("train", member), fileTag("train", member), element("span", { class: "quiet" }, scoreText(list.scores[place], list.scores.every(Number.isInteger), "")),
    wrong ? element("span", { class: "known" }, "known wrong") : null, shared);
}

function provenancePage() {
  const entries = [...page.made, ...page.pages.flatMap((one) => one.figures.map((figure) => ({ what: one.tab + ": " + figure.title, ...figure.made }))),
    ...page.pages.flatMap((one) => (one.kept?.made ?? []).map((made, number) => ({ what: "Coreset of " + one.kept.lists[number].method, ...made }))),
    ...(page.suspects?.made ?? []).map((made) => ({ what: "Likely mislabelled examples", ...made }))];
  return element("div", { class: "page" }, element("h2", {}, "Where everything comes from"),
    element("p", { class: "about" }, ...worded("What each figure was made from: command, seed, versions and the fingerprint of the data. " + page.query.how)),
    ...entries.map((entry) => element("section", { class: "panel" }, element("h3", {}, entry.what), provenance(entry, null))));
}
