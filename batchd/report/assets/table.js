// All tasks: sorted, filtered, a page at a time.
const Table = (() => {
  const { el } = Dom;
  const PAGE = 100;
  const names = new Intl.Collator("en", { numeric: true });

  function create(content, { open, state, changed }) {
    const t = content.tasks, several = content.folders.length > 1;
    // What is not known of a task's cost.
    const uncertain = i => Words.uncertain({ usd: t.calls[i] ? t.usd[i] : 0, unsettled_calls: t.unsettled_usd[i] ? 1 : 0, unsettled_usd: t.unsettled_usd[i] });
    const columns = [
      { name: "id", head: "Task", text: true },
      several && { name: "folder", head: "Batch", text: true, value: i => content.folders[t.folder[i]].name },
      { name: "status", head: "Status", text: true, value: i => `${t.status[i]} ${t.reason[i]}` },
      { name: "model", head: "Model", text: true },
      { name: "rounds", head: "Rounds", show: i => Words.count(t.rounds[i]) },
      { name: "started_at", head: "Started", show: i => Words.clock(t.started_at[i]) },
      { name: "run_s", head: "At work", show: i => Words.duration(t.run_s[i]) },
      { name: "tokens", head: "Tokens", show: i => `${t.estimated[i] ? "≈ " : ""}${Words.count(t.tokens[i])}` },
      { name: "usd", head: "Cost", show: i => Words.money(t.usd[i]) },
      t.id.some((_, i) => uncertain(i)) && { name: "uncertain", head: "Uncertain", value: i => t.unsettled_usd[i], show: uncertain },
    ].filter(Boolean);
    for (const c of columns) c.value ||= i => t[c.name][i];
    let rows = [], texts = null;

    const search = el("input", { type: "search", id: "search", placeholder: "Filter by name, prompt, model, message", "aria-label": "Filter the tasks", autocomplete: "off", spellcheck: "false" });
    const sorting = el("select", { "aria-label": "Sort by" }, columns.flatMap(c => [el("option", { value: c.name, text: `${c.head} ↑` }), el("option", { value: `-${c.name}`, text: `${c.head} ↓` })]));
    const heads = columns.map(c => el("th", { scope: "col", class: !c.text && "num", "data-column": c.name }, el("button", { type: "button", text: c.head, onclick: () => sort(c) })));
    const body = el("tbody"), none = el("p", { class: "none", hidden: true, text: "No task matches." }), range = el("span");
    const turn = (text, label, by) => el("button", { class: "plain-button", type: "button", "aria-label": label, text, onclick: () => { state.page += by; fill(); changed(); root.scrollIntoView({ block: "start" }); } });
    const back = turn("←", "Previous page", -1), on = turn("→", "Next page", 1);
    const root = el("div", {}, el("div", { class: "controls" }, search, sorting),
      el("table", { class: "grid" }, el("caption", { class: "unseen", text: "All tasks" }), el("thead", {}, el("tr", {}, heads)), body),
      none, el("div", { class: "pager" }, range, el("div", {}, back, on)));

    search.addEventListener("input", () => { state.q = search.value; state.page = 0; refresh(); changed(); });
    sorting.addEventListener("change", () => { state.sort = sorting.value; state.page = 0; refresh(); changed(); });
    body.addEventListener("click", event => {
      const row = event.target.closest("tr");
      if (row && !String(window.getSelection())) open(Number(row.dataset.place));
    });

    function sort(column) {
      const down = state.sort === `-${column.name}`, up = state.sort === column.name;
      // Of numbers people want the largest first.
      state.sort = up ? `-${column.name}` : down ? column.name : column.text ? column.name : `-${column.name}`;
      state.page = 0;
      refresh(); changed();
    }
    // What is searched: made when it is needed first.
    function text(i) {
      texts ||= t.id.map((id, k) => `${content.folders[t.folder[k]].name}/${id}\n${t.model[k]}\n${Words.reason(t.reason[k])}\n${Words.outcome(t.status[k], t.reason[k], t.rounds[k])}\n${t.message[k]}\n${t.prompt[k]}`.toLowerCase());
      return texts[i];
    }
    const shows = i => (!state.status.size || state.status.has(t.status[i])) && (!state.q || text(i).includes(state.q.toLowerCase()));
    function refresh() {
      const name = state.sort.replace(/^-/, ""), column = columns.find(c => c.name === name), way = state.sort.startsWith("-") ? -1 : 1;
      rows = t.id.map((_, i) => i).filter(shows);
      if (column) {
        const value = rows.length ? t.id.map((_, i) => column.value(i)) : [];
        const compare = column.text ? (a, b) => names.compare(value[a], value[b]) : (a, b) => value[a] - value[b];
        // What is not known comes last, whichever way.
        rows.sort((a, b) => (value[a] === null) - (value[b] === null) || way * compare(a, b) || a - b);
      }
      heads.forEach((head, i) => head.setAttribute("aria-sort", columns[i] === column ? (way > 0 ? "ascending" : "descending") : "none"));
      sorting.value = state.sort || "id";
      if (search.value !== state.q) search.value = state.q;
      fill();
    }
    function line(i) {
      const cell = c => {
        if (c.name === "id") return el("th", { scope: "row", "data-column": "id" }, el("button", { class: "link", type: "button", text: t.id[i] }), el("span", { class: "prompt", text: t.prompt[i] }));
        if (c.name === "status") return el("td", { "data-column": "status" }, Dom.status(t.status[i], Words.outcome(t.status[i], t.reason[i], t.rounds[i])));
        if (c.name === "model") return el("td", { "data-column": "model" }, Dom.name(t.model[i]));
        const text = c.show ? c.show(i) : c.value(i);
        return el("td", { class: !c.text && "num", "data-column": c.name, "data-label": text === "" ? null : c.head, text });
      };
      return el("tr", { "data-place": String(i) }, columns.map(cell));
    }
    function fill() {
      const pages = Math.max(1, Math.ceil(rows.length / PAGE));
      state.page = Math.max(0, Math.min(state.page, pages - 1));
      const from = state.page * PAGE, shown = rows.slice(from, from + PAGE);
      body.replaceChildren(...shown.map(line));
      none.hidden = rows.length > 0;
      back.disabled = state.page === 0; on.disabled = state.page >= pages - 1;
      back.parentElement.hidden = pages === 1;
      const all = rows.length === t.id.length ? "" : ` of ${Words.count(t.id.length)}`;
      range.textContent = rows.length ? `${pages > 1 ? `${Words.count(from + 1)} to ${Words.count(from + shown.length)} of ` : ""}${Words.counted(rows.length, "task")}${pages > 1 ? "" : all}` : "";
      Dom.say(`${Words.counted(rows.length, "task")} shown`);
    }
    function around(place) {
      const at = rows.indexOf(place);
      return [at > 0 ? rows[at - 1] : -1, at >= 0 && at < rows.length - 1 ? rows[at + 1] : -1];
    }
    return { root, refresh, shows, around };
  }
  return { create };
})();
