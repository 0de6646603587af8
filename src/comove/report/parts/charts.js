// Charts as inline SVG in the colours of the theme, drawn anew when their width changes.
// Round values within an interval, about so many, a step of 1, 2 or 5 times a power of ten apart.
function ticksBetween(low, high, about) {
  if (!(high > low)) return Number.isFinite(low) ? [low] : [];
  const rough = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999) * power;
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

// Powers of ten, every second or third of them where there are many; 1, 2 and 5 times them, or even steps, where few.
function logTicks(low, high, most = 6) {
  const found = [], first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  for (let power = first; power <= last; power++)
    for (const factor of [1, 2, 5]) {
      const value = Number((factor * 10 ** power).toPrecision(12));
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  if (found.length < 3) return ticksBetween(low, high, 4).filter((value) => value > 0);
  if (found.length <= most) return found;
  const powers = found.filter((value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6);
  if (powers.length < 3) return found.filter((value) => !String(value).includes("2"));
  const stride = Math.ceil(powers.length / most);
  return powers.filter((value) => Math.round(Math.log10(value)) % stride === 0);
}

// A function from values to pixels; log is natural where a loss or a count spans decades. A single value is in the middle.
function scaleOf(low, high, from, to, log) {
  const f = log ? Math.log : (value) => value;
  const span = f(high) - f(low);
  return (value) => (span ? from + ((f(value) - f(low)) / span) * (to - from) : (from + to) / 2);
}

const WIDE_LETTER = 6.6, LINE = 15; // of the text beside an axis, in pixels

// A text in lines that fit a width.
function linesOf(text, width) {
  const lines = [""];
  for (const word of text.split(" ")) {
    const longer = (lines.at(-1) + " " + word).trim();
    if (longer.length * WIDE_LETTER > width && lines.at(-1)) lines.push(word);
    else lines[lines.length - 1] = longer;
  }
  return lines;
}

// The part of a picture that is left for lines, beside texts as long as these.
function frameOf(width, height, yTexts, xName) {
  const left = Math.max(34, 16 + WIDE_LETTER * Math.max(0, ...yTexts.map((text) => text.length)));
  const xLines = linesOf(xName, width - left - 14);
  return { left, right: width - 14, top: 30, bottom: height - 31 - LINE * xLines.length, xLines };
}

function markAt(kind, x, y) {
  const r = 3.6;
  if (kind === "circle" || kind === "dot") return shape("circle", { cx: x, cy: y, r: kind === "dot" ? 2.2 : r });
  const points = { square: [[-1, -1], [1, -1], [1, 1], [-1, 1]], diamond: [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]],
    triangle: [[0, -1.2], [1.2, 1], [-1.2, 1]], down: [[0, 1.2], [1.2, -1], [-1.2, -1]],
    plus: [[-0.4, -1.3], [0.4, -1.3], [0.4, -0.4], [1.3, -0.4], [1.3, 0.4], [0.4, 0.4], [0.4, 1.3], [-0.4, 1.3], [-0.4, 0.4], [-1.3, 0.4], [-1.3, -0.4], [-0.4, -0.4]],
    cross: [[-1.2, -0.5], [-0.5, -1.2], [0, -0.6], [0.5, -1.2], [1.2, -0.5], [0.6, 0], [1.2, 0.5], [0.5, 1.2], [0, 0.6], [-0.5, 1.2], [-1.2, 0.5], [-0.6, 0]] }[kind];
  return shape("polygon", { points: points.map(([dx, dy]) => x + dx * r + "," + (y + dy * r)).join(" ") });
}

// A place for a chart that draws itself for the width it gets.
function responsive(draw, label) {
  const holder = element("div", { class: "chart", role: "img", "aria-label": label });
  let drawn = 0;
  const redraw = () => {
    const width = Math.floor(holder.clientWidth);
    if (width < 40 || width === drawn) return;
    drawn = width;
    holder.replaceChildren(draw(width));
  };
  new ResizeObserver(() => requestAnimationFrame(redraw)).observe(holder); // in the next frame: drawing changes sizes
  return holder;
}

// Ticks, rules and titles. A tick whose text would run into the one before it is left out.
function axes(svg, frame, x, y, options) {
  const { left, right, top, bottom, xLines } = frame;
  options.yTicks.forEach((value, place) => {
    svg.append(shape("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, options.yTexts[place]));
  });
  let last = -Infinity;
  options.xTicks.forEach((value, place) => {
    const text = options.xTexts[place], half = text.length * WIDE_LETTER / 2;
    if (x(value) - half < last + 8) return;
    last = x(value) + half;
    svg.append(shape("line", { class: "axis", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }));
    svg.append(shape("text", { class: "tick", x: x(value), y: bottom + 17, "text-anchor": "middle" }, text));
  });
  svg.append(shape("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  xLines.forEach((line, place) => svg.append(shape("text", { class: "title", x: (left + right) / 2, y: bottom + 36 + LINE * place, "text-anchor": "middle" }, line)));
  svg.append(shape("text", { class: "title", x: 4, y: top - 12 }, options.yName));
}

// Lengths of strokes and gaps come in line widths.
const dashes = (style) => (style.dash.length ? style.dash.map((length) => 1.5 * length).join(" ") : undefined);

const finite = (value) => value !== null && value !== undefined && Number.isFinite(value);

// Where ticks stand along x: at the points themselves if they are few, each named as the figure says.
function pointTicks(figure, xs) {
  const points = [...new Set(xs)].sort((a, b) => a - b), named = new Map(figure.named);
  const values = points.length <= 9 ? points : figure.log ? logTicks(points[0], points.at(-1)) : ticksBetween(points[0], points.at(-1), 6);
  const texts = logTexts(values);
  return [values, values.map((value, place) => named.get(value) ?? texts[place])];
}

// The methods among the series: neither controls nor a ceiling.
const methodsOf = (figure) => figure.series.filter((series) => !series.control && series.style.colour !== "level");

const LABELLED = 600; // from this width on lines bear their names

// Of many methods all lines stand together without intervals, then each in a small chart with its own, beside the controls.
function lineCharts(figure, width, methods) {
  if (!figure.crowded) return lineChart(figure, width);
  const limits = limitsOf(figure), columns = Math.max(1, Math.min(4, Math.floor(width / 150))), each = Math.floor((width - 12 * (columns - 1)) / columns);
  const small = methodsOf(figure).map((own) => element("li", {}, element("p", {}, ...methodName(own.name, methods)), lineChart(oneOf(figure, own), each, { limits, small: true })));
  const list = element("ul", { class: "multiples" }, ...small);
  list.style.setProperty("--columns", columns);
  return element("div", {}, lineChart(figure, width, { bands: false, labels: width >= LABELLED }), list);
}

// A figure with one method of it, beside the controls.
function oneOf(figure, own) {
  const series = [...figure.series.filter((one) => one.control || one.style.colour === "level").map((one) => ({ ...one, points: one.points.map(([x, y]) => [x, y, null, null]) })), own];
  return { ...figure, series, hollow: figure.hollow.filter(([x, y]) => own.points.some((point) => point[0] === x && point[1] === y)) };
}

// Between which values y runs.
function limitsOf(figure) {
  const points = figure.series.flatMap((series) => series.points);
  const ys = [...points.flatMap((point) => point.slice(1)), ...figure.levels.flatMap((level) => [level.at, level.low, level.high]), ...(figure.zero ? [0] : [])].filter(finite);
  const [low, high] = ys.length ? [Math.min(...ys), Math.max(...ys)] : [0, 1];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  return [figure.limits[0] ?? low - pad, figure.limits[1] ?? high + pad];
}

function lineChart(figure, width, { limits = limitsOf(figure), bands = true, labels = false, small = false } = {}) {
  const height = small ? 144 : Math.round(Math.min(400, Math.max(260, width * 0.5)));
  const xs = figure.series.flatMap((series) => series.points).map((point) => point[0]);
  const yTicks = ticksBetween(...limits, small ? 3 : 6), yTexts = tickTexts(yTicks), [xTicks, xTexts] = pointTicks(figure, xs);
  const frame = frameOf(width, height, yTexts, small ? "" : figure.x);
  if (small) [frame.top, frame.bottom] = [8, height - 24];
  if (labels) frame.right -= Math.min(width / 3, 20 + WIDE_LETTER * Math.max(...namesOf(figure).map(([name]) => name.length)));
  const x = scaleOf(Math.min(...xs), Math.max(...xs), frame.left + 14, frame.right - 14, figure.log);
  const y = scaleOf(...limits, frame.bottom, frame.top, false);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  axes(svg, frame, x, y, { xTicks, xTexts, yTicks, yTexts, yName: small ? "" : figure.y });
  for (const level of figure.levels) {
    if (finite(level.low)) svg.append(shape("rect", { class: "band level", x: frame.left, width: frame.right - frame.left, y: y(level.high), height: Math.max(0, y(level.low) - y(level.high)) }));
    svg.append(shape("line", { class: "line level", x1: frame.left, x2: frame.right, y1: y(level.at), y2: y(level.at), "stroke-dasharray": dashes(level.style) }));
  }
  if (figure.zero) svg.append(shape("line", { class: "axis", x1: frame.left, x2: frame.right, y1: y(0), y2: y(0) }));
  for (const series of figure.series) drawSeries(svg, series, x, y, figure.kind === "steps", bands);
  for (const point of figure.hollow) svg.append(shape("circle", { class: "hollow", cx: x(point[0]), cy: y(point[1]), r: 2.6 }));
  if (labels) nameLines(svg, figure, frame, width, y);
  return svg;
}

// What lines are called, and where each ends: [name, y, colour].
const namesOf = (figure) => [...figure.series.map((series) => [series.name, series.points.findLast((point) => finite(point[1]))?.[1], series.style.colour]),
  ...figure.levels.map((level) => [level.name, level.at, "level"])].filter(([, at]) => finite(at));

// The name of each line at its right end, as near as the others allow.
function nameLines(svg, figure, frame, width, y) {
  const names = namesOf(figure).map(([name, at, colour]) => ({ name, colour, from: y(at), to: y(at) })).sort((a, b) => a.from - b.from);
  spread(names, LINE, frame.top, frame.bottom);
  const left = frame.right + 14, room = Math.floor((width - left) / WIDE_LETTER);
  for (const { name, colour, from, to } of names) {
    svg.append(shape("path", { class: "leader " + colour, d: `M${frame.right - 10},${from}L${left - 4},${to}` }),
      shape("text", { class: "name " + colour, x: left, y: to + 4 }, name.length > room ? name.slice(0, room - 1) + "\u2026" : name, shape("title", {}, name)));
  }
}

// Moves places (ascending) apart until each is `gap` from the next, within two ends where that can be.
function spread(all, gap, top, bottom) {
  all.forEach((one, place) => { one.to = Math.max(one.to, place ? all[place - 1].to + gap : top); });
  for (let place = all.length - 1; place >= 0; place--) all[place].to = Math.min(all[place].to, place === all.length - 1 ? Math.max(bottom, top + gap * (all.length - 1)) : all[place + 1].to - gap);
}

function drawSeries(svg, series, x, y, steps, bands) {
  const style = series.style;
  const known = series.points.filter((point) => finite(point[1]));
  const group = shape("g", { class: style.colour });
  const banded = bands ? known.filter((point) => finite(point[2]) && finite(point[3])) : [];
  if (banded.length > 1) {
    const edge = (column) => stepped(banded.map((point) => [x(point[0]), y(point[column])]), steps);
    group.append(shape("polygon", { class: "band", points: [...edge(3), ...edge(2).reverse()].join(" ") }));
  } else for (const point of banded) group.append(shape("line", { class: "line", x1: x(point[0]), x2: x(point[0]), y1: y(point[2]), y2: y(point[3]) }));
  const path = stepped(known.map((point) => [x(point[0]), y(point[1])]), steps);
  group.append(shape("polyline", { class: "line", points: path.join(" "), "stroke-dasharray": dashes(style) }));
  if (known.length === 1 || (style.mark && known.length <= 16)) for (const point of known) {
    const mark = markAt(style.mark || "circle", x(point[0]), y(point[1]));
    mark.setAttribute("class", "mark");
    mark.append(shape("title", {}, `${series.name}: ${sizeText(point[1])} at ${logTexts([point[0]])[0]}`));
    group.append(mark);
  }
  svg.append(group);
}

const stepped = (corners, steps) => corners.flatMap(([px, py], i) =>
  steps && i > 0 ? [px + "," + corners[i - 1][1], px + "," + py] : [px + "," + py]);

// A method's name, and its options: "cld(rows=epochs)" is told as "cld", "rows=epochs".
function nameParts(name) {
  const [, short, options] = /^([^(]+)\((.*)\)$/.exec(name) ?? [name, name, ""];
  return [short, options];
}

function barChart(figure, width) {
  const narrow = width < 520;
  const rowHeight = narrow ? 48 : 36;
  const names = figure.series.map((series) => nameParts(series.name));
  const left = narrow ? 12 : Math.min(320, 30 + Math.max(...names.flat().map((text) => 6.9 * text.length)));
  const xLines = linesOf(figure.x, width - left - 16);
  const frame = { left, right: width - 16, top: 18, bottom: 18 + rowHeight * figure.series.length, xLines };
  const height = frame.bottom + 31 + LINE * xLines.length;
  const values = [0, ...figure.series.flatMap((series) => series.points[0].slice(1)), ...figure.levels.map((level) => level.at)].filter(finite);
  if (values.length === 1) values.push(1); // nothing is known
  const pad = (Math.max(...values) - Math.min(...values)) * 0.04 || 0.1;
  const ends = [Math.min(...values) - (Math.min(...values) < 0 ? pad : 0), Math.max(...values) + pad];
  const x = scaleOf(...ends, frame.left, frame.right, false);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  const xTicks = ticksBetween(...ends, narrow ? 5 : 8);
  axes(svg, frame, x, () => 0, { xTicks, xTexts: tickTexts(xTicks), yTicks: [], yTexts: [], yName: "" });
  svg.append(shape("line", { class: "axis", x1: x(0), x2: x(0), y1: frame.top, y2: frame.bottom }));
  for (const level of figure.levels) {
    svg.append(shape("line", { class: "line level", x1: x(level.at), x2: x(level.at), y1: frame.top, y2: frame.bottom, "stroke-dasharray": dashes(level.style) }));
    svg.append(shape("text", { class: "tick", x: x(level.at), y: frame.top - 6, "text-anchor": x(level.at) > width / 2 ? "end" : "start" }, level.name));
  }
  figure.series.forEach((series, row) => {
    const [, mean, low, high] = series.points[0];
    const middle = frame.top + rowHeight * (row + 0.5) + (narrow ? 8 : 0);
    const [name, options] = names[row];
    const words = narrow
      ? [shape("text", { class: "label", x: left, y: middle - 13 }, name, shape("tspan", { class: "small", dx: 6 }, options.length > 34 ? options.slice(0, 33) + "\u2026" : options))]
      : [shape("text", { class: "label", x: left - 8, y: middle + (options ? -2 : 4), "text-anchor": "end" }, name), shape("text", { class: "tick", x: left - 8, y: middle + 13, "text-anchor": "end" }, options)];
    const group = shape("g", { class: series.control ? "control" : "c0" }, ...words);
    if (finite(mean)) group.append(shape("rect", { class: "bar", x: Math.min(x(0), x(mean)), width: Math.abs(x(mean) - x(0)), y: middle - 8, height: 16, rx: 2 }));
    if (finite(low)) group.append(shape("path", { class: "whisker", d: `M${x(low)},${middle - 5}v10M${x(low)},${middle}H${x(high)}M${x(high)},${middle - 5}v10` }));
    svg.append(group);
  });
  return svg;
}

function legend(figure, methods) {
  const entries = [...figure.series, ...figure.levels];
  const hollow = element("li", {}, shape("svg", { width: 12, height: 12, "aria-hidden": "true" }, shape("circle", { class: "hollow", cx: 6, cy: 6, r: 2.6 })), figure.hollow_name);
  const named = figure.crowded ? "narrow" : undefined; // elsewhere the lines bear their names
  return element("ul", { class: "legend" }, ...entries.map(({ name, style }) => {
    const key = shape("svg", { width: 30, height: 12, class: style.colour, "aria-hidden": "true" },
      shape("line", { class: "line", x1: 1, x2: 29, y1: 6, y2: 6, "stroke-dasharray": dashes(style) }));
    if (style.mark) { const mark = markAt(style.mark, 15, 6); mark.setAttribute("class", "mark"); key.append(mark); }
    return element("li", { class: named }, key, element("span", {}, ...(termOf.has(name) ? worded(name) : methodName(name, methods))));
  }), ...(figure.hollow.length ? [hollow] : []));
}

// Losses of a query (dark, thick) and of training examples; the line under the pointer is named.
function trajectoryChart(lines, options, width) {
  const height = Math.round(Math.min(360, Math.max(240, width * 0.42)));
  const epochs = options.differences ? page.losses.epochs.slice(1) : page.losses.epochs;
  const values = lines.flatMap((line) => line.values).filter((value) => finite(value) && (!options.log || value > 0));
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (!options.log) { const pad = (high - low || 1) * 0.05; [low, high] = [low - pad, high + pad]; }
  if (low === high) high = low * 1.5 + 1e-9;
  const yTicks = options.log ? logTicks(low, high) : ticksBetween(low, high, 6), yTexts = (options.log ? logTexts : tickTexts)(yTicks);
  const xTicks = epochs.length <= 9 ? epochs : ticksBetween(epochs[0], epochs.at(-1), 7);
  const frame = frameOf(width, height, yTexts, "epoch");
  const x = scaleOf(epochs[0], epochs.at(-1), frame.left + 6, frame.right - 6, false);
  const y = scaleOf(low, high, frame.bottom, frame.top, options.log);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  axes(svg, frame, x, y, { xTicks, xTexts: tickTexts(xTicks), yTicks, yTexts, yName: options.differences ? "change of the loss (nats)" : "loss (nats, log scale)" });
  if (options.differences) svg.append(shape("line", { class: "axis", x1: frame.left, x2: frame.right, y1: y(0), y2: y(0) }));
  for (const line of lines) {
    const points = line.values.map((value, i) => x(epochs[i]) + "," + y(value)).join(" ");
    svg.append(shape("g", { class: "trajectory " + line.kind + (line.chosen ? " chosen" : "") }, shape("title", {}, line.name), shape("polyline", { class: "line", points })));
  }
  return svg;
}
