// Tabs, addresses (#queries/ID), and putting it all together.
function start() {
  const main = document.getElementById("main"), bar = document.getElementById("tabs");
  const holder = element("div", { class: "holder", id: "detail" });
  let shown = 0;
  const steps = { go: (by) => { const next = grid.step(by); grid.choose(next); showQuery(next, true); }, grid: () => { document.getElementById("grid").scrollIntoView(); grid.choose(shown, true); } };
  const grid = queryGrid((query, jump) => { showQuery(query, false); if (jump && narrow()) holder.scrollIntoView(); });
  const narrow = () => matchMedia("(max-width: 899px)").matches;

  function showQuery(query, focus) {
    shown = query;
    holder.replaceChildren(...queryDetail(query, steps));
    history.replaceState(null, "", addressOf(query));
    if (focus) document.getElementById("query-title").focus({ preventScroll: true });
  }

  const tabs = [{ id: "queries", name: "Queries", make: () => element("div", { class: "split" }, grid.element, holder) },
    ...page.pages.map((one) => ({ id: one.id, name: one.tab, make: () => figurePage(one) })),
    ...(page.suspects ? [{ id: "suspects", name: "Suspects", make: () => suspectPage(page.suspects) }] : []),
    { id: "provenance", name: "Provenance", make: provenancePage }];
  for (const tab of tabs) {
    tab.button = element("button", { type: "button", role: "tab", id: "tab-" + tab.id, "aria-controls": "panel-" + tab.id, tabindex: "-1", onclick: () => open(tab) }, tab.name);
    tab.panel = element("div", { role: "tabpanel", id: "panel-" + tab.id, "aria-labelledby": "tab-" + tab.id, hidden: true });
    bar.append(tab.button);
    main.append(tab.panel);
  }
  bar.addEventListener("keydown", (event) => {
    const place = tabs.findIndex((tab) => tab.button === document.activeElement);
    const next = { ArrowRight: (place + 1) % tabs.length, ArrowLeft: (place + tabs.length - 1) % tabs.length, Home: 0, End: tabs.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    open(tabs[next]);
    tabs[next].button.focus();
  });

  function open(tab) {
    for (const one of tabs) {
      const chosen = one === tab;
      one.button.setAttribute("aria-selected", String(chosen));
      one.button.tabIndex = chosen ? 0 : -1;
      one.panel.hidden = !chosen;
    }
    if (!tab.panel.hasChildNodes()) tab.panel.append(tab.make());
    history.replaceState(null, "", tab.id === "queries" ? addressOf(shown) : "#" + tab.id);
  }

  function follow() {
    const [, name, wanted] = /^#?([^/]*)\/?(.*)$/s.exec(location.hash);
    const query = name === "queries" ? queryNamed(wanted) : -1;
    if (query >= 0) { grid.reset(); showQuery(query, false); }
    open(tabs.find((tab) => tab.id === name) ?? tabs[0]);
    if (query >= 0) grid.choose(query, false, true); // when the grid can be seen: what is hidden cannot be scrolled to
  }

  document.getElementById("summary").append(...worded(summary()));
  showAt(location.hash);
  function showAt(hash) { const wanted = hash; showQuery(0, false); grid.choose(0); history.replaceState(null, "", wanted || addressOf(0)); follow(); }
  addEventListener("hashchange", follow);
  let unfolded = [];
  addEventListener("beforeprint", () => { unfolded = [...document.querySelectorAll("details:not([open])")]; for (const one of unfolded) one.open = true; });
  addEventListener("afterprint", () => { for (const one of unfolded) one.open = false; unfolded = []; });
}

const addressOf = (query) => "#queries/" + encodeURIComponent(page.query.ids[query]);

// The query that an address names by its id or its file, whatever characters these hold; -1 for none.
function queryNamed(text) {
  const decoded = text.replace(/(?:%[0-9a-f]{2})+/gi, (part) => { try { return decodeURIComponent(part); } catch { return part; } }); // "%" may stand for itself
  for (const wanted of [text, decoded])
    for (const nameOf of [(query) => String(page.query.ids[query]), (query) => fileOf("query", query)]) {
      const found = page.query.ids.findIndex((_, query) => wanted !== "" && nameOf(query) === wanted);
      if (found >= 0) return found;
    }
  return -1;
}

function summary() {
  const parts = [count(page.trained, "training example"), queryCount === page.scored ? count(queryCount, "query", "queries") : `${whole(queryCount)} of ${count(page.scored, "scored query", "scored queries")}`, count(page.methods.length, "method")];
  return parts.join(" \u00b7 ");
}

addEventListener("error", (event) => {
  const notice = document.getElementById("fault");
  notice.textContent = "This page could not be drawn as a whole: " + event.message;
  notice.hidden = false;
});
start();
