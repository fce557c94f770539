// The tasks of a batch: sorted, filtered and turned a page at a time, by the server, for there may be many.
const Tasks = (() => {
  const { el } = Dom;
  const PAGE = 100;
  const COLUMNS = [
    { name: "id", head: "Task", text: true }, { name: "status", head: "Status", text: true }, { name: "model", head: "Model", text: true },
    { name: "rounds", head: "Rounds", show: t => (t.rounds ? Words.count(t.rounds) : "") }, { name: "calls", head: "Calls", show: t => (t.calls ? Words.count(t.calls) : "") },
    { name: "took_s", head: "Took", show: t => (t.took_s === null ? "" : Words.duration(t.took_s)) },
    { name: "tokens", head: "Tokens", show: t => (t.tokens ? `${t.estimated ? "≈ " : ""}${Words.count(t.tokens)}` : "") },
    { name: "usd", head: "Cost", show: t => (t.calls ? Words.money(t.usd) : "") },
    { name: "uncertain", head: "Uncertain", show: Words.uncertain, plain: true },
  ];

  function create(batch, state, changed) {
    const search = el("input", { type: "search", id: "search", placeholder: "Filter by name, model, message", "aria-label": "Filter the tasks", autocomplete: "off", spellcheck: "false" });
    const sorting = el("select", { "aria-label": "Sort by" }, el("option", { value: "", text: "In order" }), COLUMNS.filter(c => !c.plain).flatMap(c => [el("option", { value: c.name, text: `${c.head} ↑` }), el("option", { value: `-${c.name}`, text: `${c.head} ↓` })]));
    const heads = COLUMNS.map(c => el("th", { scope: "col", class: !c.text && "num", "data-column": c.name }, c.plain ? c.head : el("button", { type: "button", text: c.head, onclick: () => sort(c) })));
    const body = el("tbody"), none = el("p", { class: "none", hidden: true, text: "No task matches." }), range = el("span");
    const turn = (text, label, by) => el("button", { class: "plain-button", type: "button", "aria-label": label, text, onclick: () => { state.page += by; changed(); root.scrollIntoView({ block: "start" }); } });
    const back = turn("←", "Previous page", -1), on = turn("→", "Next page", 1);
    const root = el("section", { id: "tasks", "aria-label": "Tasks" }, el("div", { class: "controls" }, search, sorting),
      el("table", { class: "grid tasks" }, el("caption", { class: "unseen", text: "Tasks" }), el("thead", {}, el("tr", {}, heads)), body), none, el("div", { class: "pager" }, range, el("div", {}, back, on)));
    let typing = 0;

    search.value = state.q;
    search.addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(() => { state.q = search.value; state.page = 0; changed(); }, 200); });
    sorting.addEventListener("change", () => { state.sort = sorting.value; state.page = 0; changed(); });
    marked();

    function sort(column) {
      const down = state.sort === `-${column.name}`, up = state.sort === column.name;
      // Of numbers people want the largest first.
      state.sort = up ? `-${column.name}` : down ? column.name : column.text ? column.name : `-${column.name}`;
      state.page = 0;
      marked(); changed();
    }
    function marked() {
      const name = state.sort.replace(/^-/, ""), way = state.sort.startsWith("-") ? "descending" : "ascending";
      heads.forEach((head, i) => head.setAttribute("aria-sort", COLUMNS[i].name === name ? way : "none"));
      sorting.value = state.sort;
    }
    function line(t) {
      const address = `/batches/${encodeURIComponent(batch)}/${encodeURIComponent(t.id)}`;
      const cell = c => {
        if (c.name === "id") return el("th", { scope: "row", "data-column": "id" }, el("a", { href: address, text: t.id }), t.prompt ? el("span", { class: "prompt", text: t.prompt }) : null, why(t));
        if (c.name === "status") return el("td", { "data-column": "status" }, Dom.status(t.status, Words.outcome(t.status, t.reason, t.rounds)));
        if (c.name === "model") return el("td", { "data-column": "model" }, Dom.name(t.model));
        const text = c.show ? c.show(t) : t[c.name];
        return el("td", { class: !c.text && "num", "data-column": c.name, "data-label": text === "" ? null : c.head, text });
      };
      return el("tr", { onclick: event => { if (!event.target.closest("a") && !String(getSelection())) location.assign(address); } }, COLUMNS.map(cell));
    }
    function why(t) {
      if (t.doing) return el("span", { class: "now" }, Overview.doing(t.doing.step === "model" ? { step: "model" } : t.doing), " · ", Keep.since(t.doing.since));
      // What it says of a provider that is parked stands above the table.
      const waits = Words.detail(t.reason, t.why).replace(/^(provider [^:;]+): [^;]*/, "waits for $1");
      return waits ? el("span", { class: "now", "data-status": t.status, text: waits }) : null;
    }
    function fill({ rows, matching, page }) {
      const pages = Math.max(1, Math.ceil(matching / PAGE)), from = page * PAGE;
      Keep.list(body, rows, t => t.id, line);
      body.parentElement.toggleAttribute("data-certain", !rows.some(Words.uncertain));
      none.hidden = rows.length > 0;
      back.disabled = page === 0; on.disabled = page >= pages - 1;
      back.parentElement.hidden = pages === 1;
      range.textContent = rows.length ? `${pages > 1 ? `${Words.count(from + 1)} to ${Words.count(from + rows.length)} of ` : ""}${Words.counted(matching, "task")}` : "";
      if (page >= pages) { state.page = pages - 1; changed(); }
    }
    return { root, fill };
  }
  return { create };
})();
