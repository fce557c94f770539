// A report: the page of batches with its data within, and of each task all that it did.
(() => {
  const { el } = Dom;
  const content = JSON.parse(document.getElementById("data").textContent);
  const { counts, folders, total } = content, tasks = Batch.tasksOf(content), several = folders.length > 1;
  const name = t => (several ? `${t.batch}/${t.id}` : t.id), link = (t, text) => el("button", { class: "link", type: "button", text, onclick: () => Details.open(t) });
  const state = {}, find = Tasks.finder(tasks), chips = el("div", { class: "outcome" });
  let rows = [], shown = new Set();

  const again = () => Object.assign(state, Batch.read(location.hash.slice(1)));
  const keep = () => { const query = String(Batch.query(state)); history.replaceState(null, "", query ? `#${query}` : location.href.split("#")[0]); };
  function fill() {
    rows = find(state);
    shown = new Set(rows);
    state.page = Math.min(state.page, Math.max(0, Math.ceil(rows.length / Tasks.PAGE) - 1));
    table.fill({ rows: rows.slice(state.page * Tasks.PAGE, (state.page + 1) * Tasks.PAGE), matching: rows.length, page: state.page, all: tasks.length });
    Keep.one(chips, [...state.status], () => Batch.outcome(counts, tasks.length, state, changed));
    if (timeline) timeline.draw();
    Dom.say(`${Words.counted(rows.length, "task")} shown`);
  }
  function changed() { fill(); keep(); }
  const ways = {
    link, name, open: t => Details.open(t), shows: t => shown.has(t),
    mark: t => el("button", { class: "mark-link", type: "button", "aria-label": `${name(t)}: ${Words.outcome(t.status, t.reason, t.rounds)}`, title: Words.outcome(t.status, t.reason, t.rounds), onclick: () => Details.open(t) }, Dom.status(t.status, " ")),
    only: (statuses, q) => { Object.assign(state, { status: new Set(statuses), q, page: 0 }); changed(); document.getElementById("tasks").scrollIntoView(); },
  };

  function head() {
    const done = counts.completed, all = tasks.length, left = counts.running + counts.parked + counts.queued;
    const one = !several && folders[0], first = folders.reduce((least, f) => Math.min(least, f.received_at), Infinity);
    const about = [" · batchd report", one && one.retry_of && `, a retry of ${one.retry_of}`, one && one.status === "cancelled" && ", cancelled"];
    const b = { tasks: all, completed: done, ended: all - left, took_s: content.wall_s, run_s: content.run_s };
    return [
      el("div", { class: "brand" }, el("span", {}, el("span", { class: "name", text: content.title }), about.filter(Boolean).join("")), el("span", { text: `${Words.day(first)}, ${Words.minute(first)} · times in ${Words.zone()}` })),
      Batch.headline(content.title, done, all), left ? el("p", { class: "soft", text: `${Words.counted(left, "task")} not ended yet` }) : null,
      chips, el("dl", { class: "figures" }, Batch.figures(total, b).map(Batch.figure)), content.notes.length ? el("div", { class: "notes" }, content.notes.map(text => el("p", { text }))) : null,
    ].filter(Boolean);
  }
  function results() {
    const there = folders.filter(f => f.results).slice(0, 20).map(f => el("a", { href: `${f.link}results.jsonl`, text: several ? `${f.name}/results.jsonl` : "results.jsonl" }));
    return there.length ? el("p", { class: "saved soft" }, "All results, a line each: ", there.flatMap((link, i) => (i ? [", ", link] : [link]))) : null;
  }

  again();
  const has = ["report", several && "several", tasks.some(t => t.model !== tasks[0].model) && "models", tasks.some(Words.uncertain) && "uncertain"], table = Tasks.create(state, has, { link, open: ways.open, changed });
  const { timeline, nodes } = Batch.parts(content, tasks, ways);
  Details.start(content, t => { const at = rows.indexOf(t); return [rows[at - 1], at < 0 ? undefined : rows[at + 1]]; }, t => { state.task = t ? name(t) : ""; keep(); });
  document.getElementById("head").replaceChildren(...head());
  document.getElementById("main").replaceChildren(...nodes, Batch.section("tasks", "All tasks", "", table.root, results() || ""));
  document.getElementById("foot").replaceChildren(el("p", { text: `Made by batchd ${content.version} on ${Words.day(content.made_at)}, ${Words.clock(content.made_at)}. This file asks nothing of any network.` }));
  const begin = () => { const wanted = state.task && tasks.find(t => name(t) === state.task); fill(); if (wanted) Details.open(wanted); };
  begin();
  window.addEventListener("hashchange", () => { again(); begin(); });
})();
