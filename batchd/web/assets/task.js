// One task: its facts, and its conversation as it grows.
const TaskPage = (() => {
  const { el } = Dom;

  function begin(batch, name) {
    const content = Frame.begin("", `${batch}/${name}`, [[`/batches/${encodeURIComponent(batch)}${Keep.listed(batch)}`, batch]]), at = `/batches/${encodeURIComponent(batch)}/${encodeURIComponent(name)}`;
    const top = el("div"), figures = el("dl", { class: "figures facts" }), prompt = el("div", { class: "first-prompt" });
    const talk = el("ol", { class: "conversation" }), doing = el("p", { class: "doing" }), made = el("div"), end = el("div", { id: "end" });
    const earlier = el("button", { class: "plain-button", type: "button", hidden: true, onclick: more });
    const follow = el("button", { class: "plain-button follow", type: "button", hidden: true, onclick: () => { following = !following; settle(); } });
    const steps = el("h2", { text: "Step by step", hidden: true }), gone = el("div"), outcome = el("div"), orders = el("div");
    content.replaceChildren(top, orders, gone, figures, prompt, outcome, made, el("section", { class: "talk", "aria-label": "Conversation" }, steps, earlier, talk, doing, end), follow);
    let following = null, first = 0, next = "", started = 0, failed = false;

    Live.listen(() => `/live${at}${next ? `?from=${next}` : ""}`, {
      now: data => {
        if (!Frame.update(data, data.waits)) return;
        const t = data.task, live = ["running", "parked", "queued"].includes(t.status);
        started = t.started_at || t.queued_at;
        failed = !live && t.status !== "completed";
        if (following === null) following = t.status === "running";
        // What is parked stands above.
        Keep.one(top, [t.status, t.reason, t.rounds, data.waits.length ? "" : t.why], () => heading(data.waits.length ? { ...t, why: "" } : t));
        Keep.list(figures, facts(t), f => f.label, f => el("div", { class: f.long && "long" }, el("dt", { text: f.label }), el("dd", {}, f.since ? Keep.since(f.since) : f.value), f.sub ? el("dd", { class: "sub", text: f.sub }) : null));
        Keep.one(prompt, data.prompt, text => Conversation.render([{ at: started, kind: "prompt", text, tree: data.prompt_tree }], started));
        Keep.one(doing, t.doing, d => el("span", { class: "soft" }, el("span", { class: "dot", "aria-hidden": "true" }), "Now: ", Tasks.doing(d), " · ", Keep.since(d.since)));
        follow.hidden = !live;
        steps.hidden = live || data.pruned;
        Keep.one(orders, possible(`${batch}/${name}`, live, data.waits), Orders.row);
        Keep.one(gone, data.pruned ? { folder: data.folder, kept: data.kept } : null, given => pruned(name, given));
        Keep.one(made, !live, ended => (ended ? Made.section(`/api${at}`, outcome) : el("div")));
        settle();
      },
      grown: (data, id) => {
        if (!next) { first = data.first; talk.replaceChildren(); }
        next = id;
        talk.append(...Conversation.render(data.passages, started).children);
        if (failed) Conversation.open(talk);
        remaining();
        settle();
      },
    }, Frame);

    // Who scrolls up wants to read; who comes back to the end, to follow.
    window.addEventListener("wheel", event => { if (event.deltaY < 0 && following) { following = false; settle(); } }, { passive: true });
    window.addEventListener("keydown", event => { if (["PageUp", "ArrowUp", "Home"].includes(event.key) && following) { following = false; settle(); } });
    window.addEventListener("touchmove", () => { if (following && !near()) { following = false; settle(); } }, { passive: true });
    const near = () => document.documentElement.scrollHeight - window.scrollY - window.innerHeight < 120;

    function settle() {
      follow.setAttribute("aria-pressed", String(Boolean(following)));
      follow.textContent = following ? "Following · pause" : "Follow";
      if (following && !follow.hidden) window.scrollTo({ top: document.documentElement.scrollHeight });
    }
    function remaining() {
      earlier.hidden = first === 0;
      earlier.textContent = `Show what came before (${Words.counted(first, "step")})`;
    }
    async function more() {
      try {
        const data = await Live.get(`/api${at}/conversation?before=${first}`), top = talk.firstElementChild, from = top && top.getBoundingClientRect().top;
        first = data.first;
        talk.prepend(...Conversation.render(data.passages, started).children);
        if (top) window.scrollBy(0, top.getBoundingClientRect().top - from);
        remaining();
      } catch (error) { Frame.failed(error); }
    }
  }
  // What can be ordered now.
  function possible(ref, live, waits) {
    const given = { scope: "task", name: ref }, paused = waits.some(w => w.paused && w.scope === "task");
    return live ? [["Cancel", { verb: "cancel", ...given }], paused ? ["Resume", { verb: "resume", ...given }] : ["Pause", { verb: "pause", ...given }]] : [["Run again", { verb: "retry", ...given }]];
  }
  function pruned(name, { folder, kept }) {
    const rest = kept ? `Its result is still in ${folder}/${name}.json, with the transcript beside it where there is one.` : `Its result is not in ${folder} any more: status, tokens and money are all that is left.`;
    return el("div", { class: "gone" }, el("p", {}, el("b", { text: "This task was pruned. " }), "What it asked, said and did, step by step, is dropped from the store. ", rest));
  }
  function heading(t) {
    const why = Words.detail(t.reason, t.why);
    return el("div", {},
      el("h1", { class: "headline" }, t.id, " ", el("span", { class: "of" }, Dom.status(t.status, Words.outcome(t.status, t.reason, t.rounds)))),
      why ? el("p", { class: "why", "data-status": t.status, text: why }) : null);
  }
  function facts(t) {
    const found = [];
    if (t.calls) {
      found.push({ label: "Cost", value: Words.money(t.usd), sub: "" });
      const open = Words.uncertain(t);
      if (open) found.push({ label: "Unsettled", value: open.replace(/^\+ /, ""), sub: "beside that" });
      found.push({ label: "Tokens", value: `${t.estimated ? "≈ " : ""}${Words.compact(t.tokens)}`, sub: `${Words.compact(t.input)} in${t.cached ? `, ${Words.compact(t.cached)} cached` : ""}; ${Words.compact(t.output)} out` });
      found.push({ label: "Model calls", value: Words.count(t.calls), sub: `in ${Words.counted(t.rounds, "round")}` });
    }
    if (t.took_s !== null) found.push({ label: "Took", value: Words.duration(t.took_s) });
    else if (t.started_at) found.push({ label: "Since its start", since: t.started_at });
    else found.push({ label: "Queued for", since: t.queued_at });
    if (t.attempts > 1) found.push({ label: "Dispatches", value: Words.count(t.attempts) });
    found.push({ label: "Model", value: t.model, long: true }, { label: "Directory", value: t.directory, long: true });
    return found;
  }
  return { begin };
})();
