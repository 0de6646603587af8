// Charts as inline SVG in the colours of the theme, drawn anew when their width changes.
const MARKS = ["circle", "square", "diamond", "triangle", "down", "cross"];

function ticksBetween(low, high, about) {
  const rough = (high - low) / Math.max(1, about);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of [1, 2, 5]) {
      const value = factor * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  const powers = found.filter((value) => Math.abs(Math.log10(value) % 1) < 1e-6);
  return found.length > 7 && powers.length > 1 ? powers : found;
}

const tickText = (value) => {
  const size = Math.abs(value);
  if (size > 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(0).replace("-", "\u2212");
  return Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 4 }).replace("-", "\u2212");
};

// A function from values to pixels; log is natural where a loss or a count spans decades.
function scaleOf(low, high, from, to, log) {
  const f = log ? Math.log : (value) => value;
  const span = f(high) - f(low) || 1;
  return (value) => from + ((f(value) - f(low)) / span) * (to - from);
}

function markAt(kind, x, y) {
  const r = 3.6;
  if (kind === "circle") return shape("circle", { cx: x, cy: y, r });
  const points = { square: [[-1, -1], [1, -1], [1, 1], [-1, 1]], diamond: [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]],
    triangle: [[0, -1.2], [1.2, 1], [-1.2, 1]], down: [[0, 1.2], [1.2, -1], [-1.2, -1]],
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

function axes(svg, frame, x, y, options) {
  const { left, right, top, bottom } = frame;
  for (const value of options.yTicks) {
    svg.append(shape("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }));
    svg.append(shape("text", { class: "tick", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, tickText(value)));
  }
  let last = -Infinity;
  for (const value of options.xTicks) {
    const text = tickText(value), half = text.length * 3.4;
    if (x(value) - half < last + 6) continue;
    last = x(value) + half;
    svg.append(shape("line", { class: "axis", x1: x(value), x2: x(value), y1: bottom, y2: bottom + 4 }));
    svg.append(shape("text", { class: "tick", x: x(value), y: bottom + 17, "text-anchor": "middle" }, text));
  }
  svg.append(shape("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  svg.append(shape("text", { class: "title", x: (left + right) / 2, y: bottom + 36, "text-anchor": "middle" }, options.xName));
  svg.append(shape("text", { class: "title", x: left - 44, y: top - 12 }, options.yName));
}

function styleOf(series, number) {
  if (series.level) return { colour: "level", dash: "5 4" };
  if (series.control) return { colour: "control", dash: ["5 4", "2 3", "7 3 2 3"][number % 3] };
  return { colour: "c" + (number % 6), mark: MARKS[number % MARKS.length] };
}

function styled(all) {
  let real = 0, controls = 0;
  return all.map((series) => ({ series, style: styleOf(series, series.control ? controls++ : series.level ? 0 : real++) }));
}

const finite = (value) => value !== null && value !== undefined && Number.isFinite(value);

function lineChart(figure, width) {
  const height = Math.round(Math.min(400, Math.max(260, width * 0.5)));
  const frame = { left: 52, right: width - 14, top: 30, bottom: height - 46 };
  const points = figure.series.flatMap((series) => series.points);
  const xs = points.map((point) => point[0]);
  const ys = [...points.flatMap((point) => point.slice(1)), ...figure.levels.flatMap((level) => [level.at, level.low, level.high])].filter(finite);
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  [low, high] = [figure.range?.[0] ?? low - pad, figure.range?.[1] ?? high + pad];
  const log = Boolean(figure.log) && Math.min(...xs) > 0;
  const x = scaleOf(Math.min(...xs), Math.max(...xs), frame.left + 10, frame.right - 10, log);
  const y = scaleOf(low, high, frame.bottom, frame.top, false);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  const xTicks = [...new Set(xs)].sort((a, b) => a - b);
  axes(svg, frame, x, y, { xTicks: xTicks.length <= 9 ? xTicks : log ? logTicks(xTicks[0], xTicks.at(-1)) : ticksBetween(xTicks[0], xTicks.at(-1), 6),
    yTicks: ticksBetween(low, high, 5), xName: figure.x, yName: figure.y });
  for (const level of figure.levels) {
    if (finite(level.low)) svg.append(shape("rect", { class: "band level", x: frame.left, width: frame.right - frame.left, y: y(level.high), height: Math.max(0, y(level.low) - y(level.high)) }));
    svg.append(shape("line", { class: "line level", x1: frame.left, x2: frame.right, y1: y(level.at), y2: y(level.at), "stroke-dasharray": "5 4" }));
  }
  for (const { series, style } of styled(figure.series)) drawSeries(svg, series, style, x, y, Boolean(figure.steps));
  return svg;
}

function drawSeries(svg, series, style, x, y, steps) {
  const known = series.points.filter((point) => finite(point[1]));
  const group = shape("g", { class: style.colour });
  const banded = known.filter((point) => finite(point[2]) && finite(point[3]));
  if (banded.length > 1) {
    const edge = (column) => stepped(banded.map((point) => [x(point[0]), y(point[column])]), steps);
    group.append(shape("polygon", { class: "band", points: [...edge(3), ...edge(2).reverse()].join(" ") }));
  } else for (const point of banded) group.append(shape("line", { class: "line", x1: x(point[0]), x2: x(point[0]), y1: y(point[2]), y2: y(point[3]) }));
  const path = stepped(known.map((point) => [x(point[0]), y(point[1])]), steps);
  group.append(shape("polyline", { class: "line", points: path.join(" "), "stroke-dasharray": style.dash }));
  if (style.mark && known.length <= 16) for (const point of known) {
    const mark = markAt(style.mark, x(point[0]), y(point[1]));
    mark.setAttribute("class", "mark");
    mark.append(shape("title", {}, `${series.name}: ${tickText(point[1])} at ${tickText(point[0])}`));
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
  const frame = { left, right: width - 16, top: 18, bottom: 18 + rowHeight * figure.series.length };
  const height = frame.bottom + 46;
  const values = [0, ...figure.series.flatMap((series) => series.points[0].slice(1)), ...figure.levels.map((level) => level.at)].filter(finite);
  const pad = (Math.max(...values) - Math.min(...values)) * 0.04 || 0.1;
  const x = scaleOf(Math.min(...values) - (Math.min(...values) < 0 ? pad : 0), Math.max(...values) + pad, frame.left, frame.right, false);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  const ends = [Math.min(...values), Math.max(...values)];
  axes(svg, frame, x, () => 0, { xTicks: ticksBetween(ends[0], ends[1], narrow ? 4 : 7), yTicks: [], xName: figure.x, yName: "" });
  svg.append(shape("line", { class: "axis", x1: x(0), x2: x(0), y1: frame.top, y2: frame.bottom }));
  for (const level of figure.levels) {
    svg.append(shape("line", { class: "line level", x1: x(level.at), x2: x(level.at), y1: frame.top - 2, y2: frame.bottom, "stroke-dasharray": "5 4" }));
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

function legend(figure) {
  const entries = styled(figure.series).map(({ series, style }) => [series.name, style]);
  for (const level of figure.levels) entries.push([level.name, { colour: "level", dash: "5 4" }]);
  return element("ul", { class: "legend" }, ...entries.map(([name, style]) => {
    const key = shape("svg", { width: 30, height: 12, class: style.colour, "aria-hidden": "true" },
      shape("line", { class: "line", x1: 1, x2: 29, y1: 6, y2: 6, "stroke-dasharray": style.dash }));
    if (style.mark) { const mark = markAt(style.mark, 15, 6); mark.setAttribute("class", "mark"); key.append(mark); }
    return element("li", {}, key, name);
  }));
}

// Losses of a query (dark, thick) and of training examples; nearest line is named under the pointer.
function trajectoryChart(lines, options, width) {
  const height = Math.round(Math.min(360, Math.max(240, width * 0.42)));
  const frame = { left: 52, right: width - 12, top: 30, bottom: height - 46 };
  const epochs = options.differences ? page.losses.epochs.slice(1) : page.losses.epochs;
  const values = lines.flatMap((line) => line.values).filter((value) => finite(value) && (!options.log || value > 0));
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (!options.log) { const pad = (high - low || 1) * 0.05; [low, high] = [low - pad, high + pad]; }
  if (low === high) high = low * 1.5 + 1e-9;
  const x = scaleOf(epochs[0], epochs.at(-1), frame.left + 6, frame.right - 6, false);
  const y = scaleOf(low, high, frame.bottom, frame.top, options.log);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  axes(svg, frame, x, y, { xTicks: epochs.length <= 9 ? epochs : ticksBetween(epochs[0], epochs.at(-1), 7), yTicks: options.log ? logTicks(low, high) : ticksBetween(low, high, 5),
    xName: "epoch", yName: options.differences ? "change of the loss (nats)" : "loss (nats)" });
  if (options.differences) svg.append(shape("line", { class: "axis", x1: frame.left, x2: frame.right, y1: y(0), y2: y(0) }));
  for (const line of lines) {
    const points = line.values.map((value, i) => x(epochs[i]) + "," + y(value)).join(" ");
    svg.append(shape("g", { class: "trajectory " + line.kind + (line.chosen ? " chosen" : "") }, shape("title", {}, line.name), shape("polyline", { class: "line", points })));
  }
  return svg;
}

// The share of two methods' lists that is common, as a grid of numbers; darker is more.
function overlapTable(matrix, names) {
  const head = element("tr", {}, element("td"), ...names.map((name, column) => element("th", { scope: "col", "aria-label": name, title: name }, String(column + 1))));
  const rows = names.map((name, row) => element("tr", {}, element("th", { scope: "row" }, nameParts(name)[0], element("small", {}, " " + nameParts(name)[1]), ` \u00b7 ${row + 1}`), ...matrix[row].map((share, column) => {
    const cell = element("td", { class: row === column ? "self" : undefined }, share === null ? "-" : Math.round(100 * share) + "%");
    if (row !== column && share !== null) cell.style.setProperty("--share", String(share));
    return cell;
  })));
  return element("table", { class: "overlap" }, element("thead", {}, head), element("tbody", {}, ...rows));
}
