// One batch as a server knows it: what changes from moment to moment, and about it what a report has.
const BatchPage = (() => {
  const { el } = Dom;
  const STATES = { rejected: "was refused", failed: "has ended", cancelled: "was cancelled", completed: "is complete", running: "is being worked on", parked: "is waiting", queued: "is queued" };
  // What takes the server long is asked for rarely: while tasks run, and once more when all have ended.
  const REST_MS = 20000, REST_FACTOR = 30;

  function begin(batch) {
    const content = Frame.begin("", batch), state = Batch.read(location.search);
    const top = el("div"), counts = el("div", { class: "outcome" }), figures = el("dl", { class: "figures" }), orders = el("div"), find = Search.box(batch), whole = el("div");
    const address = t => `/batches/${encodeURIComponent(batch)}/${encodeURIComponent(t.id)}`, link = (t, text) => el("a", { class: "link", href: address(t), text });
    const open = t => location.assign(address(t)), table = Tasks.create(state, ["live"], { link, open, changed });
    const saved = el("div"), tasks = Batch.section("tasks", "All tasks", "", table.root, saved);
    tasks.hidden = true; // until it is known that there are some
    content.replaceChildren(top, orders, counts, figures, find, whole, tasks);
    Keep.listed(batch, location.search);
    let timeline = null, asked = false, busy = false, due = 0, last = "";
    const ways = {
      link, open, name: t => t.id, shows: t => !state.status.size || state.status.has(t.status),
      mark: t => el("a", { class: "mark-link", href: address(t), "aria-label": `${t.id}: ${Words.outcome(t.status, t.reason, t.rounds)}`, title: Words.outcome(t.status, t.reason, t.rounds) }, Dom.status(t.status, " ")),
      only: (statuses, q) => { Object.assign(state, { status: new Set(statuses), q, page: 0 }); changed(); tasks.scrollIntoView(); },
    };
    const live = Live.listen(() => `/live/batches/${encodeURIComponent(batch)}?${asking()}`, { now: data => {
      if (!Frame.update(data, data.waits)) return;
      const b = data.batch, ended = b.completed + b.timeout + b.error + b.cancelled, done = ended === b.tasks;
      // While tasks run, they are what people look at; in the morning the rest is.
      if (!asked && !done) content.append(whole);
      Keep.one(top, { b: [b.name, b.status, b.received_at, b.retry_of, b.completed, b.tasks, b.problems, b.pruned], report: data.report }, () => heading(b, data.report));
      Keep.one(orders, possible(b, data.waits, ended), Orders.row);
      Keep.one(counts, { b: Batch.STATUSES.map(s => b[s]), on: [...state.status] }, () => Batch.outcome(b, b.tasks, state, changed));
      Keep.list(figures, Batch.figures(b, { ...b, ended, since: b.finished_at ? 0 : b.received_at, took_s: b.finished_at - b.received_at }), f => f.label, Batch.figure);
      Keep.one(saved, data.results || null, () => el("p", { class: "saved soft" }, "All results, a line each: ", el("a", { href: `/batches/${encodeURIComponent(batch)}/results.jsonl`, text: "results.jsonl" })));
      tasks.hidden = find.hidden = !b.tasks;
      table.fill({ ...data, all: b.tasks });
      document.title = `${b.tasks ? `${ended}/${b.tasks} ` : ""}${b.name} · batchd`;
      const mark = JSON.stringify([b.calls, ended, b.finished_at]);
      if (b.tasks && mark !== last && !busy && (done || Date.now() >= due)) all(mark);
    } }, Frame);

    // What a report has: not while somebody uses what is there.
    async function all(mark) {
      const begun = Date.now();
      asked = busy = true;
      try {
        const given = await Live.get(`/api/report/${encodeURIComponent(batch)}`);
        if (!whole.contains(document.activeElement) && !whole.querySelector("canvas[data-zoomed]")) {
          const made = Batch.parts(given, Batch.tasksOf(given), ways);
          timeline = made.timeline;
          whole.replaceChildren(...made.nodes);
          last = mark;
        } else setTimeout(() => all(mark), REST_MS); // somebody uses what is there
      } catch (error) { Frame.failed(error); }
      due = Date.now() + Math.max(REST_MS, REST_FACTOR * (Date.now() - begun));
      busy = false;
    }
    function asking() {
      const query = Batch.query(state);
      query.set("sort", state.sort === "order" ? "" : state.sort);
      return query;
    }
    function changed() {
      const query = String(Batch.query(state));
      history.replaceState(null, "", query ? `?${query}` : location.pathname);
      Keep.listed(batch, query && `?${query}`);
      if (timeline) timeline.draw();
      live.renew();
    }
  }
  function heading(b, report) {
    return el("div", {},
      el("p", { class: "path" }, el("b", { text: b.name }), ` ${STATES[b.status] || b.status}`, b.retry_of ? [", a retry of ", el("a", { href: `/batches/${encodeURIComponent(b.retry_of)}`, text: b.retry_of })] : null, el("span", { class: "soft", text: ` · received ${Words.lately(b.received_at)}` }),
        report ? [" · ", el("a", { href: `/batches/${encodeURIComponent(b.name)}/report.html`, text: "Report" })] : null),
      Batch.headline(b.name, b.completed, b.tasks),
      b.problems.length ? el("ul", { class: "problems" }, b.problems.map(text => el("li", { text }))) : null,
      b.pruned ? el("p", { class: "gone", text: `Pruned: what ${b.pruned === b.tasks ? "its tasks" : Words.counted(b.pruned, "task")} asked, said and did is dropped from the store; statuses, tokens and money stay. What its folder still has is shown: ${b.folder}` }) : null);
  }
  // What can be ordered now.
  function possible(b, waits, ended) {
    const given = { scope: "batch", name: b.name }, paused = waits.some(w => w.paused && w.scope === "batch" && w.name === b.name);
    return [
      ...(ended < b.tasks ? [["Cancel", { verb: "cancel", ...given }], paused ? ["Resume", { verb: "resume", ...given }] : ["Pause", { verb: "pause", ...given }]] : []),
      ...(ended > b.completed ? [["Run again what did not complete", { verb: "retry", failed: true, ...given }]] : []),
      ...(b.completed ? [["Run again", { verb: "retry", ...given }]] : []),
    ];
  }
  return { begin };
})();
