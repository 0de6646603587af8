// Where methods agree: the share of their lists that is common, of one query and on average over all.
const share = (one, other) => {
  if (!one.length || !other.length) return null;
  const own = new Set(one.map((entry) => entry.member));
  return other.filter((entry) => own.has(entry.member)).length / Math.min(one.length, other.length);
};

const overlaps = (lists, side) => lists.map((one) => lists.map((other) => share(one[side], other[side])));

const overlapOfAll = [HELPS, HURTS].map((side) => onFirstUse(() => {
  const names = page.methods.map((_, method) => method);
  const total = names.map(() => names.map(() => [0, 0]));
  for (let query = 0; query < queryCount; query++) {
    const lists = names.map((method) => { const pair = []; pair[side] = listOf(method, query, side); return pair; });
    overlaps(lists, side).forEach((row, a) => row.forEach((value, b) => { if (value !== null) { total[a][b][0] += value; total[a][b][1] += 1; } }));
  }
  return total.map((row) => row.map(([sum, number]) => (number ? sum / number : null)));
}));

function agreement(lists) {
  const which = element("select", { id: "overlap-of" }, element("option", { value: "one", selected: !view.everywhere }, "this query"), element("option", { value: "all", selected: view.everywhere }, "all queries, on average"));
  const side = element("select", { id: "overlap-side" }, ...SIDES.map((one, number) => element("option", { value: number, selected: number === view.side }, one.name)));
  const holder = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table: where methods agree" });
  function update() {
    view.everywhere = which.value === "all";
    view.side = Number(side.value);
    const matrix = view.everywhere ? overlapOfAll[view.side]() : overlaps(lists, view.side);
    holder.replaceChildren(overlapTable(matrix, page.methods));
  }
  which.addEventListener("change", update);
  side.addEventListener("change", update);
  update();
  return element("section", { class: "panel" }, element("h3", {}, "Where methods agree"),
    element("div", { class: "controls" }, field("Lists of what", side), field("Of", which)), holder,
    element("p", { class: "quiet" }, `The share of the first ${count(places, "example")} of the method in the row that the method in the column lists too; the stronger the colour, the more.`));
}

// A grid of numbers; the stronger the colour, the more. Every row and column bears its method's name, options on a line below it.
function overlapTable(matrix, methods) {
  const named = ({ short, options }) => [...breakable(short), options ? element("small", {}, ...breakable(options)) : ""];
  const head = element("tr", {}, element("td"), ...methods.map((method) => element("th", { scope: "col" }, ...named(method))));
  const rows = methods.map((method, row) => element("tr", {}, element("th", { scope: "row" }, ...named(method)), ...matrix[row].map((value, column) => {
    const cell = element("td", { class: row === column ? "self" : undefined }, value === null ? NOTHING : Math.round(100 * value) + "%");
    if (row !== column && value !== null) cell.style.setProperty("--share", String(value));
    return cell;
  })));
  return element("table", { class: "overlap" }, element("thead", {}, head), element("tbody", {}, ...rows));
}
