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
  const article = element("article", { class: "detail", "aria-labelledby": "query-title" });
  const head = queryHead(query, steps);
  let chosen = null;

  const refresh = [];
  function choose(member) {
    chosen = chosen === member ? null : member;
    for (const item of article.querySelectorAll(".example")) item.setAttribute("aria-pressed", String(Number(item.dataset.member) === chosen));
    for (const update of refresh) update();
  }
  const cards = page.methods.map((_, number) => methodCard(number, lists[number], votes, query, choose));
  const curves = trajectories(query, lists, () => chosen);
  const inspected = inspector(query, lists, () => chosen);
  const bars = pinnedBars(query, head, inspected.element, () => chosen, choose);
  refresh.push(curves.update, inspected.update, bars.update);
  const shared = votes.some((found) => [...found.values()].some((methods) => methods.length > 1));
  const hints = [shared ? "A number marks an example that so many methods list on the same side." : "",
    page.query.labels[query] >= 0 ? "Classes other than the query\u2019s are in italics." : "", aboutMeans(lists)].filter(Boolean).join(" ");
  article.append(head, element("div", { class: "methods" }, ...cards), element("p", { class: "quiet" }, ...worded(hints)),
    element("div", { class: "pair" }, curves.element, inspected.element));
  if (page.methods.length > 1) article.append(agreement(lists));
  return [bars.query, article, bars.example];
}

// What the second number of an example says, and what is marked as typical, where something is.
function aboutMeans(lists) {
  const marked = lists.some((pair, method) => pair.some((list, side) => list.some(({ member }) => isTypical(method, side, member))));
  const most = marked ? ` \u201cTypical for this model\u201d are those in the lists of most queries: what makes them stand here is less this query than the model.` : "";
  return queryCount > 1 ? `Below each score stands the example\u2019s mean score over all queries.${most}` : "";
}

// --- what stays in sight ---

// The query at the top while its examples are scrolled through, and the chosen example at the bottom until its panel shows.
function pinnedBars(query, head, panel, chosenMember, choose) {
  const guess = page.query.predicted[query], wrong = page.query.correct[query] === 0;
  const about = [className(page.query.labels[query]), wrong ? " \u2717 " + (guess < 0 ? "another class" : className(guess)) : ""].join("");
  const top = pinned("Query " + page.query.ids[query], about, "query", query, head);
  const bottom = element("div", { class: "pinned bottom", hidden: true });
  let panelShown = false;
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting, boundingClientRect } of entries)
      if (target === head) top.hidden = isIntersecting || boundingClientRect.bottom > 0;
      else { panelShown = isIntersecting; update(); }
  });
  seen.observe(head);
  seen.observe(panel);
  function update() {
    const member = chosenMember();
    bottom.hidden = member === null || panelShown;
    if (bottom.hidden) return;
    const close = element("button", { type: "button", "aria-label": "No example chosen", onclick: () => choose(member) }, "\u2715");
    bottom.replaceChildren(...pinned("Chosen: " + trainClass(member), "id " + page.train.ids[member], "train", member, panel).childNodes, close);
  }
  return { query: top, example: bottom, update };
}

function pinned(name, about, side, index, target) {
  const go = element("button", { type: "button", class: "go", onclick: () => target.scrollIntoView() }, picture(side, index),
    element("span", {}, element("strong", {}, name), " ", about), page.texts ? element("span", { class: "text", dir: "auto" }, textOf(side, index)) : null,
    fileOf(side, index) ? element("span", { class: "quiet" }, fileOf(side, index)) : null);
  return element("div", { class: "pinned", hidden: true }, go);
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
  facts.push(["Loss at the end", sizeText(loss[query]) + " nats"]);
  if (fileOf("query", query)) facts.push(["File", fileOf("query", query)]);
  const verdict = correct[query] < 0 ? null : element("span", { class: "verdict " + (wrong ? "bad" : "good") }, wrong ? "\u2717 wrong" : "\u2713 right");
  const text = page.texts ? element("blockquote", { class: "text", dir: "auto" }, textOf("query", query)) : null;
  return element("header", { class: "query-head" }, picture("query", query, "The query: " + className(labels[query])),
    element("div", { class: "about" },
      element("h2", { id: "query-title", tabindex: "-1" }, "Query " + ids[query], " ", verdict), text,
      element("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, ...(name.startsWith("Loss") ? worded(value) : [value]))]))),
    element("nav", { class: "steps", "aria-label": "Queries one by one" },
      element("button", { type: "button", class: "to-grid", onclick: steps.grid }, "All queries"),
      element("button", { type: "button", onclick: () => steps.go(-1) }, "\u2190 Previous"),
      element("button", { type: "button", onclick: () => steps.go(1) }, "Next \u2192")));
}

function methodCard(number, pair, votes, query, choose) {
  const method = page.methods[number];
  const title = element("h3", {}, ...methodName(method.short), method.options ? element("small", {}, " " + method.options) : "");
  if (pair.every((list) => list.length === 0))
    return element("section", { class: "method" }, title, trust(method), element("p", { class: "quiet" }, "This method did not score this query."));
  const parts = pair.map((list, side) => {
    const last = list.at(-1)?.score, contrary = list.length > 0 && (side === HELPS ? last <= 0 : last >= 0);
    const note = contrary ? element("p", { class: "quiet" }, side === HELPS ? "A score of 0 or below does not help." : "A score of 0 or above does not hurt.") : null;
    return element("div", { class: SIDES[side].name }, element("h4", {}, ...(number === 0 ? worded(SIDES[side].title) : [SIDES[side].title])), note,
      element("ol", { class: page.texts || !page.sheets ? "examples rows" : "examples" }, ...list.map((entry) => element("li", {}, exampleButton(number, side, entry, votes[side].get(entry.member), query, choose)))));
  });
  return element("section", { class: "method" }, title, trust(method), ...parts);
}

// How far to believe a method here: its LDS on these data, or what would measure it.
function trust({ trust: { lds, command } }) {
  const seen = new Set();
  if (lds) return element("ul", { class: "trust" }, ...lds.map((one) => element("li", {}, ...worded(trustText(one, lds.length > 1), seen), " ",
    element("button", { type: "button", class: "link", onclick: () => document.getElementById("tab-lds").click() }, "compare"))));
  const how = command ? [element("p", {}, "This measures it; then write the report again with ", element("code", {}, "--lds lds/"), ":"), element("p", { class: "code", tabindex: "0" }, ...command.split(" ").flatMap((word) => [element("span", {}, word), " "]))]
    : [element("p", {}, "comove.evaluation.lds_benchmark measures it in Python; a report shows the result that it is given.")];
  return element("details", { class: "trust" }, element("summary", {}, "LDS on these data: not measured"), element("p", {}, ...worded("How well the scores predict retrained models is not known; the linear datamodeling score would tell.")), ...how);
}

function trustText({ mean, interval, share, alpha, output, same, other }, several) {
  const of = [several && output, alpha !== null && Math.abs(alpha - 0.5) > 1e-9 && "\u03b1 " + Number(alpha.toPrecision(3))].filter(Boolean).join(", ");
  const parts = [`LDS on these data${of ? ` (${of})` : ""}: ${fixedText(mean)}`];
  if (interval) parts[0] += ` (${fixedText(interval[0])} to ${fixedText(interval[1])})`;
  if (share !== null) parts.push(`${Math.round(100 * share)}% of the ceiling`);
  if (same !== null) parts.push(`same-class control ${fixedText(same)}`);
  return parts.join(", ") + (other ? "; measured with models trained in another way" : "") + ".";
}

function exampleButton(method, side, { member, score, rank }, methods, query, choose) {
  const name = trainClass(member), id = page.train.ids[member], shared = methods.length, own = scoreOf(method, score);
  const same = page.train.labels[member] === page.query.labels[query];
  const agreed = shared < 2 ? "" : `; in the lists of ${shared} methods: ${methods.map((m) => page.methods[m].short).join(", ")}`;
  const typical = isTypical(method, side, member), mean = queryCount > 1 && Number.isFinite(meanOf(method, member)) ? meanText(method, member, score) : "";
  const told = `${SIDES[side].name}, place ${rank + 1}: ${name}, id ${id}${fileTold("train", member)}, score ${own}${mean ? `, mean score ${mean}` : ""}${typical ? ", typical for this model: " + listedText(method, side, member) : ""}${agreed}`;
  const badge = shared < 2 ? null : element("span", { class: "badge", "aria-hidden": "true" }, String(shared));
  const text = page.texts ? element("span", { class: "text", dir: "auto" }, textOf("train", member)) : null;
  const plain = page.texts || page.sheets ? null : element("span", { class: "plain" }, "#" + id);
  const button = element("button", { type: "button", class: "example" + (shared > 1 ? " shared" : ""), "aria-pressed": "false", "aria-label": told, title: told, onclick: () => choose(member) },
    picture("train", member), text, plain, element("span", { class: "label" + (same ? "" : " other") }, name),
    element("span", { class: "score" }, own), mean ? element("span", { class: "mean" }, "mean " + mean) : null, typical ? element("span", { class: "typical" }, "typical") : null,
    plain ? null : idTag("train", member), fileTag("train", member), badge);
  button.dataset.member = member;
  return button;
}

// The mean score of an example, no finer than a score of this size is told.
function meanText(method, member, beside) {
  const mean = meanOf(method, member), size = Math.abs(beside);
  if (!(size >= 0.001 && size < 1e6)) return scoreText(mean);
  const digits = Math.max(0, 1 - Math.floor(Math.log10(size))), text = decimals(Math.abs(mean), digits);
  return (/[1-9]/.test(text) ? (mean > 0 ? "+" : MINUS) : "") + text;
}
const listedText = (method, side, member) => `${SIDES[side].name} ${whole(listedIn(method, side, member))} of ${count(page.methods[method].queries, "query", "queries")} most`;

// --- losses ---

function trajectories(query, lists, chosenMember) {
  const scored = page.methods.map((_, number) => number).filter((number) => lists[number].some((list) => list.length));
  if (!scored.includes(view.method)) view.method = scored[0] ?? 0;
  const method = element("select", { id: "line-method" }, ...scored.map((number) => element("option", { value: number, selected: number === view.method }, page.methods[number].name)));
  const kind = element("select", { id: "line-kind" }, element("option", { value: "loss", selected: !view.differences }, "losses"), element("option", { value: "change", selected: view.differences }, "changes"));
  const holder = element("div"), keys = element("ul", { class: "legend" }), said = element("p", { class: "quiet" });
  const values = (example) => {
    const losses = lossesOf(example);
    return view.differences ? losses.slice(1).map((loss, i) => loss - losses[i]) : losses;
  };
  function update() {
    view.method = Number(method.value);
    view.differences = kind.value === "change";
    const line = (side) => ({ member, score }) => ({ kind: SIDES[side].name, values: values(trainExample(member)), name: `${SIDES[side].name}: ${trainClass(member)}, id ${page.train.ids[member]}${fileTold("train", member)}, score ${scoreOf(view.method, score)}` });
    const lines = SIDES.flatMap((_, side) => (lists[view.method]?.[side] ?? []).slice(0, view.lines).map(line(side)));
    const member = chosenMember();
    if (member !== null) lines.push({ kind: "chosen", values: values(trainExample(member)), name: `chosen: ${trainClass(member)}, id ${page.train.ids[member]}${fileTold("train", member)}` });
    lines.push({ kind: "query", values: values(queryExample(query)), name: "query " + page.query.ids[query] + fileTold("query", query) });
    keys.replaceChildren(...trajectoryKeys(member !== null));
    said.replaceChildren(...worded(aboutTrajectories()));
    const told = `${view.differences ? "Changes of the loss" : "Losses"} along training: query ${page.query.ids[query]} against the ${view.lines} training examples that help it most and the ${view.lines} that hurt it most by ${page.methods[view.method].name}; ${view.differences ? "linear" : "logarithmic"} scale`;
    holder.replaceChildren(page.losses.epochs.length > (view.differences ? 2 : 1)
      ? responsive((width) => trajectoryChart(lines, { differences: view.differences, log: !view.differences }, width), told)
      : element("p", { class: "quiet" }, "Too few rows were recorded to draw."));
  }
  method.addEventListener("change", update);
  kind.addEventListener("change", update);
  update();
  return { update, element: element("section", { class: "panel" }, element("h3", {}, "Losses along training"),
    element("div", { class: "controls" }, field("Method", method), field("Show", kind)), keys, holder, said) };
}

function trajectoryKeys(chosen) {
  const named = [["query", "the query"], ["helps", "helps"], ["hurts", "hurts"], ...(chosen ? [["chosen", "chosen"]] : [])];
  return named.map(([name, text]) => element("li", {}, shape("svg", { width: 26, height: 12, "aria-hidden": "true", class: "trajectory " + name },
    shape("line", { class: "line", x1: 1, x2: 25, y1: 6, y2: 6 })), text));
}

// What a reader of the losses has to know: of what they are, and what CLD makes of them.
function aboutTrajectories() {
  const { recorded, epochs, run, low } = page.losses;
  const rows = recorded === epochs.length ? "" : `; ${epochs.length} of ${whole(recorded)} recorded rows`;
  const floor = low <= 1.01e-6 ? ` Losses below ${raised(-6)} nats are drawn as that.` : "";
  const changes = rows ? "Changes between the rows shown; CLD correlates those" : "Changes, as CLD correlates them,";
  const scale = view.differences ? ` ${changes} from each recorded row to the next. The scale is linear.`
    : " The scale is logarithmic, but CLD correlates changes of the losses themselves: what looks large late in training may be tiny. Choose \u201cchanges\u201d to see what it compares.";
  return `Of ${run}${rows}; ${count(view.lines, "example")} a side.` + scale + (view.differences ? "" : floor);
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
    const overall = (number) => (queryCount < 2 ? [] : [scoreText(meanOf(number, member)), SIDES.map((_, side) => whole(listedIn(number, side, member))).join(" / ")]);
    const rows = page.methods.map((method, number) => {
      for (const side of [HELPS, HURTS]) {
        const entry = lists[number][side].find((one) => one.member === member);
        if (entry) return [method.name, `${SIDES[side].name}, place ${entry.rank + 1}`, scoreOf(number, entry.score), ...overall(number)];
      }
      return [method.name, "not in its lists", NOTHING, ...overall(number)];
    });
    const text = page.texts ? element("blockquote", { class: "text", dir: "auto" }, textOf("train", member)) : null;
    holder.replaceChildren(element("div", { class: "inspected" }, picture("train", member, trainClass(member)),
      element("p", {}, element("strong", {}, trainClass(member)), element("br"), "id " + page.train.ids[member], element("br"), fileOf("train", member)), text),
      table({ columns: ["method", "place", "score", ...(queryCount < 2 ? [] : ["mean score", "helps / hurts"])], rows }, "how each method places the chosen example"),
      queryCount < 2 ? "" : element("p", { class: "quiet" }, `The last column: among the ${places} that help, or hurt, most, of how many of the ${count(queryCount, "query", "queries")}.`));
  }
  update();
  return { update, element: element("section", { class: "panel inspector" }, element("h3", {}, "Chosen example"), holder) };
}
