// One batch: how far it is, what it waits for, and its tasks. What is sorted and filtered stands in the address.
const BatchPage = (() => {
  const { el } = Dom;
  const STATUSES = ["completed", "timeout", "error", "cancelled", "running", "parked", "queued"];
  const STATES = { rejected: "was refused", failed: "has ended", cancelled: "was cancelled", completed: "is complete", running: "is being worked on", parked: "is parked", queued: "is queued" };

  function begin(name) {
    const content = Frame.begin("", name), state = read();
    const top = el("div"), counts = el("div", { class: "outcome" }), figures = el("dl", { class: "figures" });
    const tasks = Tasks.create(name, state, changed);
    tasks.root.hidden = true; // until it is known that there are some
    const orders = el("div");
    content.replaceChildren(top, orders, counts, figures, tasks.root);
    Keep.listed(name, location.search);
    const live = Live.listen(() => `/live/batches/${encodeURIComponent(name)}?${queryOf(state)}`, { now: data => {
      if (!Frame.update(data, data.waits)) return;
      const b = data.batch;
      Keep.one(top, { b: [b.name, b.status, b.received_at, b.retry_of, b.completed, b.tasks, b.problems, b.pruned], report: data.report }, () => heading(b, data.report));
      Keep.one(orders, possible(b, data.waits), Orders.row);
      Keep.one(counts, { b: STATUSES.map(s => b[s]), on: [...state.status] }, () => outcome(b, state, changed));
      Keep.list(figures, facts(b), f => f.label, f => el("div", {}, el("dt", { text: f.label }), el("dd", {}, f.since ? Keep.since(f.since) : f.value), f.sub ? el("dd", { class: "sub", text: f.sub }) : null));
      tasks.root.hidden = !b.tasks;
      tasks.fill(data);
      document.title = `${b.tasks ? `${b.completed + b.timeout + b.error + b.cancelled}/${b.tasks} ` : ""}${b.name} · batchd`;
    } }, Frame);

    function changed() {
      const query = String(queryOf(state));
      history.replaceState(null, "", query ? `?${query}` : location.pathname);
      Keep.listed(name, query && `?${query}`);
      live.renew();
    }
  }
  function read() {
    const given = new URLSearchParams(location.search);
    return { q: given.get("q") || "", sort: given.get("sort") || "", page: parseInt(given.get("page"), 10) || 0,
      status: new Set((given.get("status") || "").split(",").filter(s => STATUSES.includes(s))) };
  }
  function queryOf(state) {
    const query = new URLSearchParams();
    if (state.q) query.set("q", state.q);
    if (state.status.size) query.set("status", [...state.status].join(","));
    if (state.sort) query.set("sort", state.sort);
    if (state.page) query.set("page", state.page);
    return query;
  }
  function heading(b, report) {
    const done = b.completed === b.tasks && b.tasks ? [`All ${Words.counted(b.tasks, "task")} completed`] : b.tasks ? [`${Words.count(b.completed)} `, el("span", { class: "of", text: `of ${Words.counted(b.tasks, "task")}` }), " completed"] : ["Refused"];
    return el("div", {},
      el("p", { class: "path" }, el("b", { text: b.name }), ` ${STATES[b.status] || b.status}`, b.retry_of ? [", a retry of ", el("a", { href: `/batches/${encodeURIComponent(b.retry_of)}`, text: b.retry_of })] : null, el("span", { class: "soft", text: ` · received ${Words.lately(b.received_at)}` }),
        report ? [" · ", el("a", { href: `/batches/${encodeURIComponent(b.name)}/report.html`, text: "Report" })] : null),
      el("h1", { class: "headline" }, el("span", { class: "unseen", text: `${b.name}: ` }), done),
      b.problems.length ? el("ul", { class: "problems" }, b.problems.map(text => el("li", { text }))) : null,
      b.pruned ? el("p", { class: "gone", text: `Pruned: what ${b.pruned === b.tasks ? "its tasks" : Words.counted(b.pruned, "task")} asked, said and did is dropped from the store; statuses, tokens and money stay. What its folder still has is shown: ${b.folder}` }) : null);
  }
  function outcome(b, state, changed) {
    const there = STATUSES.filter(s => b[s]);
    const toggle = s => { if (!state.status.delete(s)) state.status.add(s); state.page = 0; changed(); };
    const part = s => {
      const made = el("button", { class: "part", type: "button", tabindex: "-1", "aria-hidden": "true", "data-fill": s, "data-off": state.status.size > 0 && !state.status.has(s), title: `${Words.count(b[s])} ${Words.NAMES[s]}`, onclick: () => toggle(s) });
      made.style.flexGrow = String(b[s] / b.tasks);
      return made;
    };
    const chip = s => el("button", { class: "chip", type: "button", "aria-pressed": String(state.status.has(s)), "data-chip": s, onclick: () => toggle(s) },
      el("span", { class: "swatch", "data-fill": s }), el("span", {}, el("b", { text: Words.count(b[s]) }), ` ${Words.NAMES[s]}`));
    // A filter whose last task has moved on can still be taken away.
    const chips = STATUSES.filter(s => b[s] || state.status.has(s));
    return el("div", {}, el("div", { class: "whole" }, there.map(part)), el("div", { class: "legend", role: "group", "aria-label": "Show only" }, chips.map(chip)));
  }
  // What can be ordered now.
  function possible(b, waits) {
    const left = b.tasks - b.completed - b.timeout - b.error - b.cancelled, failed = b.timeout + b.error + b.cancelled, given = { scope: "batch", name: b.name };
    const paused = waits.some(w => w.paused && w.scope === "batch" && w.name === b.name);
    return [
      ...(left ? [["Cancel", { verb: "cancel", ...given }], paused ? ["Resume", { verb: "resume", ...given }] : ["Pause", { verb: "pause", ...given }]] : []),
      ...(failed ? [["Run again what did not complete", { verb: "retry", failed: true, ...given }]] : []),
    ];
  }
  function facts(b) {
    const ended = b.completed + b.timeout + b.error + b.cancelled, found = [];
    const money = b.unsettled_calls ? `and at most ${Words.money(b.unsettled_usd)} unsettled` : b.budget_usd ? `of ${Words.money(b.budget_usd)}` : b.completed && b.usd ? `${Words.money(b.usd / b.completed)} a completed task` : "";
    if (b.calls) found.push({ label: "Cost", value: Words.atLeast(b.usd, b.known_usd), sub: money }, { label: "Tokens", value: Words.compact(b.tokens), sub: b.cached ? `${Words.compact(b.cached)} of them cached` : "" }, { label: "Model calls", value: Words.compact(b.calls), sub: ended ? `${(b.calls / ended).toFixed(1)} an ended task` : "" });
    if (b.tasks) found.push(b.finished_at ? { label: "Took", value: Words.duration(b.finished_at - b.received_at) } : { label: "Open for", since: b.received_at });
    return found;
  }
  return { begin };
})();
