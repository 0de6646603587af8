// Elements. Text is only ever set as text; nothing is parsed as markup.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function shape(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const pictures = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    pictures.unobserve(entry.target);
    drawPicture(entry.target, entry.target.dataset.side, Number(entry.target.dataset.index));
  }
}, { rootMargin: "200px" });

// The picture of an example; null where there are none. A lazy one is drawn when it comes into view.
function picture(side, index, label = "", lazy = false) {
  if (!page.sheets) return null;
  const { width, height, crisp } = page.sheets;
  const named = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" };
  const canvas = element("canvas", { width, height, class: crisp ? "crisp" : undefined, ...named });
  Object.assign(canvas.dataset, { side, index });
  if (lazy) pictures.observe(canvas);
  else drawPicture(canvas, side, index);
  return canvas;
}

// A name that may be broken behind "=", "," and "(".
const breakable = (name) => name.match(/[^=,(_]*[=,(_]?/g).filter(Boolean).flatMap((part, place) => (place ? [element("wbr"), part] : [part]));

const LONG = 24; // rows of a table that are shown at once

// A table; a long one is folded away, until one wants it or prints.
function foldedTable(content, label, kind) {
  const made = table(content, label, kind);
  return content.rows.length <= LONG ? made : element("details", { class: "fold" }, element("summary", {}, `The numbers, ${count(content.rows.length, "row")}`), made);
}

// The first column names the row and stays in sight when the others have to be scrolled.
function table(content, label, methods = "attribution") {
  const numeric = content.columns.map((_, column) => column > 0 &&
    content.rows.every((row) => /^[-\u2212+>]? ?[\d.,]+(\u2212[\d.,/]+)?%?( to .*)?$|^[-\u2013]$/.test(row[column])));
  const kind = (column) => (numeric[column] ? "number" : undefined);
  const head = element("tr", {}, ...content.columns.map((text, column) => element("th", { scope: "col", class: kind(column) }, ...worded(text))));
  const body = content.rows.map((row) => element("tr", {}, ...row.map((text, column) =>
    column ? element("td", { class: kind(column) }, text) : element("th", { scope: "row" }, ...methodName(text, methods)))));
  return element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table: " + label },
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...body)));
}

// How a figure was made: what a reader needs to make it again.
function provenance(made, summary = "How this was made") {
  const parts = [made].flat().map((one) => {
    const facts = [["Made from", one.source], ["Command", one.command ?? "not recorded"], ["Seed", one.seed ?? "not recorded"],
      ["Data", one.data], ["Data fingerprint", one.fingerprint ?? "not recorded"],
      ["Settings", Object.entries(one.settings).map(([name, value]) => name.replaceAll("_", " ") + ": " + value).join("; ")],
      ["Versions", Object.entries(one.versions).filter(([, version]) => version !== "not installed")
        .map(([name, version]) => name + " " + version).join(", ") || "not recorded"]];
    return element("dl", { class: "facts" }, ...facts.filter(([, value]) => value !== null && value !== undefined && value !== "")
      .flatMap(([name, value]) => [element("dt", {}, name),
        element("dd", { class: name === "Command" || name.endsWith("fingerprint") ? "code" : undefined }, String(value))]));
  });
  return summary === null ? parts[0] : element("details", { class: "made" }, element("summary", {}, summary), ...parts);
}
