// One query: what helped and hurt it by each method, where methods agree, and losses side by side.
const SIDES = [{ name: "helps", title: "Helps most" }, { name: "hurts", title: "Hurts most" }];
const view = { method: 0, differences: false, lines: 4, everywhere: false, side: HELPS };

function queryDetail(query, steps) {
  const lists = page.methods.map((_, method) => SIDES.map((_, side) => listOf(method, query, side)));
  const votes = SIDES.map((_, side) => {
    const found = new Map();
    lists.forEach((pair, method) => { for (const { member } of pair[side]) found.set(member, [...(found.get(member) ?? []), method]); });
    return found;
  });
  const root = element("article", { class: "detail", "aria-labelledby": "query-title" });
  let chosen = null;

  const refresh = [];
  function choose(member) {
    chosen = chosen === member ? null : member;
    for (const item of root.querySelectorAll(".example")) item.setAttribute("aria-pressed", String(Number(item.dataset.member) === chosen));
    for (const update of refresh) update();
  }
  const cards = page.methods.map((method, number) => methodCard(method, lists[number], votes, query, choose));
  const curves = trajectories(query, lists, () => chosen);
  const inspected = inspector(query, lists, () => chosen);
  refresh.push(curves.update, inspected.update);
  const shared = votes.some((found) => [...found.values()].some((methods) => methods.length > 1));
  const hints = [shared ? "A number marks an example that so many methods list on the same side." : "",
    page.query.labels[query] >= 0 ? "Classes other than the query\u2019s are in italics." : ""].join(" ").trim();
  root.append(queryHead(query, steps), element("div", { class: "methods" }, ...cards), element("p", { class: "quiet" }, hints),
    element("div", { class: "pair" }, curves.element, inspected.element));
  if (page.methods.length > 1) root.append(agreement(lists));
  return root;
}

function queryHead(query, steps) {
  const { ids, labels, predicted, confidence, correct, right, asked, loss } = page.query;
  const wrong = correct[query] === 0;
  const facts = [["True class", className(labels[query])]];
  if (correct[query] >= 0) {
    const sure = confidence[query] === null ? "" : ` (${Math.round(100 * confidence[query])}% sure)`;
    facts.push(["Predicted", (predicted[query] < 0 ? "another class" : className(predicted[query])) + sure]);
    if (asked > 1) facts.push(["Right in", `${right[query]} of ${asked} runs`]);
  }
  facts.push(["Loss at the end", Number(loss[query].toPrecision(3)).toString() + " nats"]);
  const verdict = correct[query] < 0 ? null : element("span", { class: "verdict " + (wrong ? "bad" : "good") }, wrong ? "\u2717 wrong" : "\u2713 right");
  const text = page.texts ? element("blockquote", { class: "text", dir: "auto" }, textOf("query", query)) : null;
  return element("header", { class: "query-head" }, picture("query", query, "The query: " + className(labels[query])),
    element("div", { class: "about" },
      element("h2", { id: "query-title", tabindex: "-1" }, "Query " + ids[query], " ", verdict), text,
      element("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]))),
    element("nav", { class: "steps", "aria-label": "Queries one by one" },
      element("button", { type: "button", class: "to-grid", onclick: steps.grid }, "All queries"),
      element("button", { type: "button", onclick: () => steps.go(-1) }, "\u2190 Previous"),
      element("button", { type: "button", onclick: () => steps.go(1) }, "Next \u2192")));
}

function methodCard(method, pair, votes, query, choose) {
  const title = element("h3", {}, method.short, method.options ? element("small", {}, " " + method.options) : "");
  if (pair.every((list) => list.length === 0))
    return element("section", { class: "method" }, title, element("p", { class: "quiet" }, "This method did not score this query."));
  const parts = pair.map((list, side) => {
    const contrary = list.length > 0 && (side === HELPS ? list.at(-1).score < 0 : list.at(-1).score > 0);
    const note = !contrary ? null : element("p", { class: "quiet" }, side === HELPS ? "Scores below 0 do not help; these hurt least." : "Scores above 0 do not hurt; these help least.");
    return element("div", { class: SIDES[side].name }, element("h4", {}, SIDES[side].title), note,
      element("ol", { class: page.texts || !page.sheets ? "examples rows" : "examples" }, ...list.map((entry) => element("li", {}, exampleButton(entry, votes[side].get(entry.member), query, choose, SIDES[side].name)))));
  });
  return element("section", { class: "method" }, title, ...parts);
}

function exampleButton({ member, score, rank }, methods, query, choose, verb) {
  const name = trainClass(member), id = page.train.ids[member], shared = methods.length;
  const same = page.train.labels[member] === page.query.labels[query];
  const agreed = shared < 2 ? "" : `; in the lists of ${shared} methods: ${methods.map((m) => page.methods[m].short).join(", ")}`;
  const told = `${verb}, place ${rank + 1}: ${name}, id ${id}, score ${scoreText(score)}${agreed}`;
  const badge = shared < 2 ? null : element("span", { class: "badge", "aria-hidden": "true" }, String(shared));
  const text = page.texts ? element("span", { class: "text", dir: "auto" }, textOf("train", member)) : null;
  const plain = page.texts || page.sheets ? null : element("span", { class: "plain" }, "#" + id);
  const button = element("button", { type: "button", class: "example" + (shared > 1 ? " shared" : ""), "aria-pressed": "false", "aria-label": told, title: told, onclick: () => choose(member) },
    picture("train", member), text, plain, element("span", { class: "label" + (same ? "" : " other") }, name),
    element("span", { class: "score" }, scoreText(score)), badge);
  button.dataset.member = member;
  return button;
}

// --- losses ---

function trajectories(query, lists, chosenMember) {
  const scored = page.methods.map((_, number) => number).filter((number) => lists[number].some((list) => list.length));
  if (!scored.includes(view.method)) view.method = scored[0] ?? 0;
  const method = element("select", { id: "line-method" }, ...scored.map((number) => element("option", { value: number, selected: number === view.method }, page.methods[number].name)));
  const kind = element("select", { id: "line-kind" }, element("option", { value: "loss", selected: !view.differences }, "losses"), element("option", { value: "change", selected: view.differences }, "changes"));
  const holder = element("div");
  const values = (example) => {
    const losses = lossesOf(example);
    return view.differences ? losses.slice(1).map((loss, i) => loss - losses[i]) : losses;
  };
  function update() {
    view.method = Number(method.value);
    view.differences = kind.value === "change";
    const line = (side) => ({ member, score }) => ({ kind: SIDES[side].name, values: values(trainExample(member)), name: `${SIDES[side].name}: ${trainClass(member)}, id ${page.train.ids[member]}, score ${scoreText(score)}` });
    const lines = SIDES.flatMap((_, side) => (lists[view.method]?.[side] ?? []).slice(0, view.lines).map(line(side)));
    const member = chosenMember();
    if (member !== null) lines.push({ kind: "chosen", values: values(trainExample(member)), name: `chosen: ${trainClass(member)}, id ${page.train.ids[member]}` });
    lines.push({ kind: "query", values: values(queryExample(query)), name: "query " + page.query.ids[query] });
    const told = `${view.differences ? "Changes of the loss" : "Losses"} along training: query ${page.query.ids[query]} against the ${view.lines} training examples that help it most and the ${view.lines} that hurt it most by ${page.methods[view.method].name}`;
    holder.replaceChildren(page.losses.epochs.length > (view.differences ? 2 : 1)
      ? responsive((width) => trajectoryChart(lines, { differences: view.differences, log: !view.differences }, width), told)
      : element("p", { class: "quiet" }, "Too few rows were recorded to draw."));
  }
  method.addEventListener("change", update);
  kind.addEventListener("change", update);
  update();
  const { recorded, epochs, run } = page.losses;
  const rows = recorded === epochs.length ? "" : `; ${epochs.length} of ${recorded} recorded rows`;
  const keys = [["query", "the query"], ["helps", "helps"], ["hurts", "hurts"], ["chosen", "chosen"]].map(([name, text]) =>
    element("li", {}, shape("svg", { width: 26, height: 12, "aria-hidden": "true", class: "trajectory " + name }, shape("line", { class: "line", x1: 1, x2: 25, y1: 6, y2: 6 })), text));
  return { update, element: element("section", { class: "panel" }, element("h3", {}, "Losses along training"),
    element("div", { class: "controls" }, field("Method", method), field("Show", kind)), element("ul", { class: "legend" }, ...keys), holder,
    element("p", { class: "quiet" }, `Of ${run}${rows}; ${view.lines} examples a side.`)) };
}

// --- the chosen example ---

function inspector(query, lists, chosenMember) {
  const holder = element("div", { "aria-live": "polite" });
  function update() {
    const member = chosenMember();
    if (member === null) {
      holder.replaceChildren(element("p", { class: "quiet" }, "Choose a training example above to see where each method places it, and its loss beside the query\u2019s."));
      return;
    }
    const rows = page.methods.map((method, number) => {
      for (const side of [HELPS, HURTS]) {
        const entry = lists[number][side].find((one) => one.member === member);
        if (entry) return [method.name, `${SIDES[side].name}, place ${entry.rank + 1}`, scoreText(entry.score)];
      }
      return [method.name, "not in its lists", "-"];
    });
    const text = page.texts ? element("blockquote", { class: "text", dir: "auto" }, textOf("train", member)) : null;
    holder.replaceChildren(element("div", { class: "inspected" }, picture("train", member, trainClass(member)),
      element("p", {}, element("strong", {}, trainClass(member)), element("br"), "id " + page.train.ids[member]), text),
      table({ columns: ["method", "place", "score"], rows }));
  }
  update();
  return { update, element: element("section", { class: "panel inspector" }, element("h3", {}, "Chosen example"), holder) };
}

// --- agreement ---

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
  const holder = element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Overlap of methods" });
  function update() {
    view.everywhere = which.value === "all";
    view.side = Number(side.value);
    const matrix = view.everywhere ? overlapOfAll[view.side]() : overlaps(lists, view.side);
    holder.replaceChildren(overlapTable(matrix, page.methods.map((method) => method.name)));
  }
  which.addEventListener("change", update);
  side.addEventListener("change", update);
  update();
  return element("section", { class: "panel" }, element("h3", {}, "Where methods agree"),
    element("div", { class: "controls" }, field("Lists of what", side), field("Of", which)), holder,
    element("p", { class: "quiet" }, `The share of the first ${places} examples that two methods have in common.`));
}
