// The other tabs: measured results, likely mislabelled examples, and where everything comes from.
function figurePage(content) {
  const figures = content.figures.map((figure) => {
    const draw = figure.kind === "bars" ? barChart : lineChart;
    return element("figure", { class: "panel" }, element("figcaption", {}, element("h3", {}, figure.title)),
      figure.kind === "bars" ? null : legend(figure), responsive((width) => draw(figure, width), figure.title + "; the numbers are in the table below"),
      ...figure.notes.map((note) => element("p", { class: "quiet" }, note)), table(figure.table), provenance(figure.made));
  });
  return element("div", { class: "page" }, element("h2", {}, content.heading), element("p", { class: "about" }, content.about), ...figures);
}

function suspectPage(content) {
  const votes = new Map();
  content.lists.forEach((list, number) => { for (const member of list.members) votes.set(member, [...(votes.get(member) ?? []), number]); });
  const sections = content.lists.map((list) => element("section", { class: "panel" }, element("h3", {}, list.method),
    list.note ? element("p", { class: "quiet" }, list.note) : null,
    element("ol", { class: page.texts || !page.sheets ? "suspects rows" : "suspects" }, ...list.members.map((member, place) => suspectItem(list, member, place, votes.get(member), content.lists)))));
  return element("div", { class: "page" }, element("h2", {}, "Which labels look wrong?"),
    element("p", { class: "about" }, `The ${content.lists[0].members.length} most suspicious training labels by each method, the most suspicious first. A label named twice deserves the first look; whether it is wrong, only a look can say.`),
    ...sections, provenance(content.made));
}

function suspectItem(list, member, place, methods, lists) {
  const suggested = list.suggested && list.suggested[place] >= 0 && list.suggested[place] !== page.train.labels[member] ? className(list.suggested[place]) : null;
  const wrong = list.known ? list.known[place] : false;
  const shared = methods.length < 2 ? null : element("span", { class: "badge", title: "also named by " + methods.map((m) => lists[m].method).join(", ") }, String(methods.length));
  const told = `${place + 1}: labelled ${trainClass(member)}`;
  return element("li", { class: "suspect" + (wrong ? " wrong" : "") }, picture("train", member, told),
    page.texts ? element("span", { class: "text", dir: "auto" }, textOf("train", member)) : null,
    element("span", { class: "label" }, trainClass(member)), suggested ? element("span", { class: "suggested" }, suggested + "?") : null,
    element("span", { class: "quiet" }, "#" + page.train.ids[member]), element("span", { class: "quiet" }, scoreText(list.scores[place])),
    wrong ? element("span", { class: "known" }, "known wrong") : null, shared);
}

function provenancePage() {
  const entries = [...page.made, ...page.pages.flatMap((one) => one.figures.map((figure) => ({ what: one.tab + ": " + figure.title, ...figure.made }))),
    ...(page.suspects?.made ?? []).map((made) => ({ what: "Likely mislabelled examples", ...made }))];
  return element("div", { class: "page" }, element("h2", {}, "Where everything comes from"),
    element("p", { class: "about" }, "What each figure was made from: command, seed, versions and the fingerprint of the data. " + page.query.how),
    ...entries.map((entry) => element("section", { class: "panel" }, element("h3", {}, entry.what), provenance(entry, null))));
}
