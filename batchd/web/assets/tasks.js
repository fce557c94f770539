// The tasks of batches as a table: sorted, filtered and turned a page at a time by who has them, a server or the page itself.
const Tasks = (() => {
  const { el } = Dom;
  const PAGE = 100, RANKS = { error: 0, timeout: 0, cancelled: 1, running: 2, parked: 3, completed: 4 };
  const names = new Intl.Collator("en", { numeric: true });
  const counted = n => (n ? Words.count(n) : "");
  // `only`: where a column is shown, in a report or on a page that a server fills.
  const COLUMNS = [
    { name: "id", head: "Task", text: true },
    { name: "folder", head: "Batch", text: true, only: "several", value: t => t.batch, show: t => t.batch },
    { name: "status", head: "Status", text: true, value: t => `${t.status} ${t.reason}` },
    { name: "model", head: "Model", text: true, only: "models" },
    { name: "rounds", head: "Rounds", show: t => counted(t.rounds) },
    { name: "calls", head: "Calls", only: "live", show: t => counted(t.calls) },
    { name: "took_s", head: "Took", only: "live", show: t => Words.duration(t.took_s) },
    { name: "started_at", head: "Started", only: "report", show: t => Words.clock(t.started_at) },
    { name: "run_s", head: "At work", only: "report", show: t => Words.duration(t.run_s) },
    { name: "tokens", head: "Tokens", show: t => (t.tokens ? `${t.estimated ? "≈ " : ""}${Words.count(t.tokens)}` : "") },
    { name: "usd", head: "Cost", show: t => (t.calls ? Words.money(t.usd) : "") },
    { name: "uncertain", head: "Unsettled", only: "uncertain", value: t => t.unsettled_usd, show: t => Words.uncertain(t) },
  ];
  for (const c of COLUMNS) c.value ||= t => t[c.name];

  // `has`: what there is room or reason for, of what a column is `only` for. `link(task, text)` leads to a task, and `open(task)` goes there.
  function create(state, has, { link, open, changed }) {
    const columns = COLUMNS.filter(c => !c.only || has.includes(c.only) || (["models", "uncertain"].includes(c.only) && has.includes("live")));
    const search = el("input", { type: "search", id: "search", placeholder: `Filter by name, ${has.includes("live") ? "" : "prompt, "}model, message`, "aria-label": "Filter the tasks", autocomplete: "off", spellcheck: "false" });
    const sortable = columns.filter(c => !(c.only === "uncertain" && has.includes("live")));
    const sorting = el("select", { "aria-label": "Sort by" }, el("option", { value: "failed", text: "Failures first" }), el("option", { value: "order", text: "In order" }), sortable.flatMap(c => [el("option", { value: c.name, text: `${c.head} ↑` }), el("option", { value: `-${c.name}`, text: `${c.head} ↓` })]));
    const heads = columns.map(c => el("th", { scope: "col", class: !c.text && "num", "data-column": c.name }, sortable.includes(c) ? el("button", { type: "button", text: c.head, onclick: () => sort(c) }) : c.head));
    const body = el("tbody"), none = el("p", { class: "none", hidden: true, text: "No task matches." }), range = el("span");
    const turn = (text, label, by) => el("button", { class: "plain-button", type: "button", "aria-label": label, text, onclick: () => { state.page += by; changed(); root.scrollIntoView({ block: "start" }); } });
    const back = turn("←", "Previous page", -1), on = turn("→", "Next page", 1);
    const root = el("div", {}, el("div", { class: "controls" }, search, sorting),
      el("table", { class: "grid tasks" }, el("caption", { class: "unseen", text: "All tasks" }), el("thead", {}, el("tr", {}, heads)), body), none, el("div", { class: "pager" }, range, el("div", {}, back, on)));
    let typing = 0;

    const begun = () => { state.page = 0; changed(); };
    const sought = () => { state.q = search.value; begun(); };
    search.addEventListener("input", () => { clearTimeout(typing); if (has.includes("live")) typing = setTimeout(sought, 200); else sought(); });
    sorting.addEventListener("change", () => { state.sort = sorting.value; begun(); });

    function sort(column) {
      const down = state.sort === `-${column.name}`, up = state.sort === column.name;
      // Of numbers people want the largest first.
      state.sort = up ? `-${column.name}` : down ? column.name : column.text ? column.name : `-${column.name}`;
      begun();
    }
    function line(t) {
      const cell = c => {
        if (c.name === "id") return el("th", { scope: "row", "data-column": "id" }, link(t, t.id), t.prompt ? el("span", { class: "prompt", text: t.prompt }) : null, why(t));
        if (c.name === "status") return el("td", { "data-column": "status" }, Dom.status(t.status, Words.outcome(t.status, t.reason, t.rounds)));
        if (c.name === "model") return el("td", { "data-column": "model" }, Dom.name(t.model));
        const text = c.show(t);
        return el("td", { class: !c.text && "num", "data-column": c.name, "data-label": text === "" ? null : c.head, text });
      };
      return el("tr", { onclick: event => { if (!event.target.closest("a, button") && !String(getSelection())) open(t); } }, columns.map(cell));
    }
    function why(t) {
      if (t.doing) return el("span", { class: "now" }, doing(t.doing.step === "model" ? { step: "model" } : t.doing), " · ", Keep.since(t.doing.since));
      // What it says of a provider that is parked stands above the table.
      const waits = Words.detail(t.reason, t.why).replace(/^(provider [^:;]+): [^;]*/, "waits for $1");
      return waits ? el("span", { class: "now", "data-status": t.status, text: waits }) : null;
    }
    // `all`: how many there are, whether or not they match.
    function fill({ rows, matching, page, all }) {
      const pages = Math.max(1, Math.ceil(matching / PAGE)), from = page * PAGE;
      const name = state.sort.replace(/^-/, ""), way = state.sort.startsWith("-") ? "descending" : "ascending";
      heads.forEach((head, i) => head.setAttribute("aria-sort", columns[i].name === name ? way : "none"));
      sorting.value = state.sort;
      if (search.value !== state.q && document.activeElement !== search) search.value = state.q;
      Keep.list(body, rows, t => `${t.batch || ""}/${t.id}`, line);
      body.parentElement.toggleAttribute("data-certain", !rows.some(Words.uncertain));
      none.hidden = rows.length > 0;
      back.disabled = page === 0; on.disabled = page >= pages - 1;
      back.parentElement.hidden = pages === 1;
      const rest = pages > 1 || matching === all ? "" : ` of ${Words.count(all)}`;
      range.textContent = rows.length ? `${pages > 1 ? `${Words.count(from + 1)} to ${Words.count(from + rows.length)} of ` : ""}${Words.counted(matching, "task")}${rest}` : "";
      if (page >= pages) { state.page = pages - 1; changed(); }
    }
    return { root, fill };
  }
  const STEPS = { starting: "starting", waiting: "waits", model: "asks the model", tool: "runs", evaluating: "is evaluated" };
  const doing = a => [el("span", { text: STEPS[a.step] || a.step }), a.detail ? el("code", { class: "soft", text: ` ${a.detail}` }) : null];

  // What a page finds by itself among all tasks: those that match, sorted.
  function finder(all) {
    let texts = null; // made when it is needed first
    const text = t => (texts ||= new Map(all.map(each => [each, [`${each.batch}/${each.id}`, each.model, Words.reason(each.reason), Words.outcome(each.status, each.reason, each.rounds), each.why, each.prompt].join("\n").toLowerCase()]))).get(t);
    return state => {
      const name = state.sort.replace(/^-/, ""), column = COLUMNS.find(c => c.name === name), way = state.sort.startsWith("-") ? -1 : 1;
      const rank = t => (t.status in RANKS ? RANKS[t.status] : 5), q = state.q.toLowerCase();
      const found = all.filter(t => (!state.status.size || state.status.has(t.status)) && (!q || text(t).includes(q)));
      const compare = column && column.text ? names.compare : (a, b) => a - b;
      // What is not known comes last, whichever way.
      const order = column ? (a, b) => { const x = column.value(a), y = column.value(b); return (x === null) - (y === null) || way * compare(x, y); } : name === "failed" ? (a, b) => rank(a) - rank(b) : () => 0;
      return found.sort((a, b) => order(a, b) || a.place - b.place);
    };
  }
  // Lists of what has the same key, in the order in which keys come.
  function grouped(all, key) {
    const found = new Map();
    for (const each of all) {
      const name = key(each);
      if (found.has(name)) found.get(name).push(each); else found.set(name, [each]);
    }
    return [...found.values()];
  }
  return { create, finder, doing, grouped, PAGE };
})();
