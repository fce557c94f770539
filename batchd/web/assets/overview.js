// How things stand.
const Overview = (() => {
  const { el } = Dom;
  const SHARES = ["completed", "timeout", "error", "cancelled", "running", "parked"];

  function begin() {
    const content = Frame.begin("/", ""), part = (tag, given) => el(tag, given || {});
    const headline = part("h1", { class: "headline" }), figures = part("dl", { class: "figures" });
    const open = lines("Open batches", "batches"), work = lines("At work", "agents"), providers = cards("Providers"), ended = lines("Ended lately", "ended");
    const orders = el("div");
    content.replaceChildren(headline, orders, Dropping.row(), figures, open.root, work.root, providers.root, ended.root, el("p", { class: "older" }, el("button", { class: "plain-button", type: "button", text: "Show all batches", onclick: event => all(event.target, ended) })));
    Live.listen(() => "/live/overview", { now: data => {
      if (!Frame.update(data, data.parked)) return;
      Keep.one(headline, standing(data), text => el("span", {}, text.strong, text.soft && el("span", { class: "of", text: text.soft })));
      const paused = data.parked.some(w => w.paused && w.scope === "all"), every = { scope: "all" };
      Keep.one(orders, data.left ? [paused ? ["Resume everything", { verb: "resume", ...every }] : ["Pause everything", { verb: "pause", ...every }]] : [], Orders.row);
      Keep.list(figures, facts(data), f => f.label, figure);
      open.fill(data.batches, data.open, b => b.name, line);
      work.fill(data.agents, data.running, a => `${a.batch}/${a.task}`, agent);
      providers.fill(data.providers);
      if (!ended.all) ended.fill(data.ended, data.ended.length, b => b.name, line);
    } }, Frame);
  }
  function standing(data) {
    if (!data.left) return { strong: data.batches.length || data.ended.length ? "Nothing left to do" : "Nothing has been dropped yet" };
    const strong = `${Words.counted(data.left, "task")} left`;
    if (!data.daemon && !data.silent) return { strong, soft: ", waiting for a daemon" };
    const time = data.seconds_left ? `about ${Words.rough(data.seconds_left)}` : "";
    return { strong, soft: time && `, ${time}${data.held ? ` for ${Words.count(data.left - data.held)} of them` : ""}` };
  }
  function facts(data) {
    const { daemon, speed } = data, day = daemon && daemon.day, found = [];
    if (daemon) found.push({ label: "At work", value: Words.count(data.running), sub: daemon.slots ? `of ${Words.counted(daemon.slots, "slot")}` : "", bar: ["running", daemon.slots && data.running / daemon.slots] });
    found.push({ label: "Queued", value: Words.compact(data.queued), sub: data.waiting ? `and ${Words.count(data.waiting)} waiting` : "" });
    if (data.held) found.push({ label: "Waiting", value: Words.compact(data.held), sub: "not for a slot" });
    if (speed && data.left && (daemon || data.silent)) found.push({ label: "Speed", value: `${Words.compact(speed.tasks < 100 ? speed.tasks : Math.round(speed.tasks))} / min`, sub: `${Words.compact(speed.tokens)} tokens, ${Words.money(speed.usd)}` });
    if (day) {
      const reserved = Math.round(day.reserved_usd * 1e8) / 1e8; // what sums of it leave is none
      const part = (day.spent_usd + reserved) / day.limit_usd, warn = part > 0.9;
      const about = [day.limit_usd ? `of ${Words.money(day.limit_usd)}` : "no limit a day", Words.unsettled(day.unsettled_usd), reserved ? `${Words.money(reserved)} set aside` : ""];
      found.push({ label: "Spent today, UTC", value: Words.atLeast(day.cost_usd, day.spent_usd), sub: about.filter(Boolean).join(", "), ...(day.limit_usd ? { bar: [warn ? "error" : "accent", part], warn } : {}) });
    }
    return found;
  }
  const figure = f => el("div", {}, el("dt", { text: f.label }), el("dd", { text: f.value }),
    f.bar ? el("dd", { class: "gauge", "aria-hidden": "true" }, el("span", { class: "bar" }, f.bar[1] ? Dom.fill(...f.bar) : null)) : null,
    f.sub ? el("dd", { class: `sub${f.warn ? " warn" : ""}`, text: f.sub }) : null);

  // A section with a table, there only while it has lines.
  function lines(title, name) {
    const heads = { batches: BATCH, ended: BATCH, agents: AGENT }[name], body = el("tbody"), more = el("p", { class: "soft more", hidden: true }), count = el("span", { class: "count" });
    const root = el("section", { id: name, hidden: true, "aria-label": title }, el("h2", {}, title, count),
      el("table", { class: `grid ${name}` }, el("caption", { class: "unseen", text: title }), el("thead", {}, el("tr", {}, heads.map(([column, text, num]) => el("th", { scope: "col", class: num && "num", "data-column": column, text })))), body), more);
    const fill = (items, total, key, render) => {
      root.hidden = !items.length;
      count.textContent = total > 1 ? Words.count(total) : "";
      Keep.list(body, items, key, render);
      body.parentElement.toggleAttribute("data-certain", !items.some(Words.uncertain));
      more.hidden = total <= items.length;
      more.textContent = `and ${Words.count(total - items.length)} more`;
    };
    return { root, fill, all: false };
  }
  const BATCH = [["id", "Batch"], ["done", "Done", true], ["failed", "Failed", true], ["tokens", "Tokens", true], ["usd", "Cost", true], ["uncertain", "Unsettled", true], ["received", "Received", true]];
  const AGENT = [["id", "Task"], ["step", "Doing"], ["since", "For", true], ["rounds", "Round", true], ["calls", "Calls", true]];

  function line(b) {
    const failed = b.timeout + b.error, done = b.completed + failed + b.cancelled, word = ["rejected", "cancelled"].includes(b.status) && b.status;
    const cell = (column, label, text, tone) => el("td", { class: "num", "data-column": column, "data-label": text !== word && text && label, "data-tone": tone, text });
    const first = b.prompt && el("span", { class: "prompt", text: b.tasks > 1 ? `${b.prompt.replace(/ …$/, "")} … and ${Words.count(b.tasks - 1)} more` : b.prompt });
    return row(`/batches/${encodeURIComponent(b.name)}`, el("th", { scope: "row", "data-column": "id" }, el("a", { href: `/batches/${encodeURIComponent(b.name)}`, text: b.name }), first || null, bar(b)), [
      cell("done", "Done", b.tasks ? `${Words.count(done)} / ${Words.count(b.tasks)}` : ""), cell("failed", "Failed", word || (failed ? Words.count(failed) : ""), b.status !== "cancelled" && (failed || word) ? "error" : null),
      cell("tokens", "Tokens", b.tokens ? Words.compact(b.tokens) : ""), cell("usd", "Cost", !b.calls && !b.unsettled_calls ? "" : Words.atLeast(b.usd, b.known_usd)), cell("uncertain", "Unsettled", Words.uncertain(b)), cell("received", "Received", Words.lately(b.received_at))]);
  }
  function bar(b) {
    const label = SHARES.filter(s => b[s]).map(s => `${Words.count(b[s])} ${Words.NAMES[s]}`).join(", ");
    return b.tasks ? el("span", { class: "bar", role: "img", "aria-label": label || "nothing has begun" }, SHARES.map(s => (b[s] ? Dom.fill(s, b[s] / b.tasks) : null))) : null;
  }
  function agent(a) {
    const address = `/batches/${encodeURIComponent(a.batch)}/${encodeURIComponent(a.task)}`;
    return row(address, el("th", { scope: "row", "data-column": "id" }, el("a", { class: "soft", href: `/batches/${encodeURIComponent(a.batch)}`, text: a.batch }), " / ", el("a", { href: address, text: a.task }), a.prompt ? el("span", { class: "prompt", text: a.prompt }) : null), [
      el("td", { "data-column": "step" }, Tasks.doing(a)), el("td", { class: "num", "data-column": "since", "data-label": "for" }, Keep.since(a.since)),
      el("td", { class: "num", "data-column": "rounds", "data-label": "round", text: Words.count(a.rounds) }), el("td", { class: "num", "data-column": "calls", "data-label": "calls", text: Words.count(a.calls) })]);
  }
  function row(address, first, rest) {
    return el("tr", { onclick: event => { if (!event.target.closest("a") && !String(getSelection())) location.assign(address); } }, first, rest);
  }
  function cards(title) {
    const list = el("div", { class: "cards" }), root = el("section", { hidden: true, "aria-label": title }, el("h2", { text: title }), list);
    const fill = items => { root.hidden = !items.length; Keep.list(list, items, p => p.name, provider); };
    return { root, fill };
  }
  function provider(p) {
    const limit = (n, most) => (most ? `${Words.compact(n)} of ${Words.compact(most)}` : Words.compact(n));
    const [calls, rpm, tokens, tpm] = [p.calls || 0, p.rpm, p.tokens || 0, p.tpm].map(Math.round);
    const limits = [calls || rpm ? `${limit(calls, rpm)} ${calls === 1 && !rpm ? "request" : "requests"}` : "", tokens || tpm ? `${limit(tokens, tpm)} tokens` : ""].filter(Boolean).join(", ");
    const now = [p.waiting ? `${Words.counted(p.waiting, "call")} wait${p.waiting === 1 ? "s" : ""}` : "", p.paused_s >= 0.5 ? `asked to wait ${Words.duration(Math.round(p.paused_s))}` : ""].filter(Boolean).join(", ");
    return el("div", { class: "card", "data-tone": p.parked.length ? "parked" : null },
      el("h3", { text: p.name }),
      p.parked.length ? el("p", {}, Dom.status("parked", "waiting"), el("span", { class: "soft" }, " for ", Keep.since(p.parked[0].since))) : el("p", {}, el("b", { text: Words.count(p.under_way) }), el("span", { class: "soft", text: ` of ${Words.counted(p.concurrent, "call")} under way` })),
      el("span", { class: "bar", "aria-hidden": "true" }, p.under_way ? Dom.fill("running", p.under_way / p.concurrent) : null),
      now ? el("p", { class: "soft", text: now }) : null, limits ? el("p", { class: "soft small", text: `${limits} a minute` }) : null);
  }
  // Every batch there is, a hundred at a time.
  async function all(button, ended, page = 0, before = []) {
    try {
      const data = await Live.get(`/api/batches?page=${page}`), list = [...before, ...data.batches];
      ended.all = true;
      ended.root.querySelector("h2").firstChild.textContent = "All batches";
      ended.fill(list, list.length, b => b.name, line);
      button.hidden = !data.more;
      button.textContent = "Show older batches";
      button.onclick = () => all(button, ended, page + 1, list);
    } catch (error) { Frame.failed(error); }
  }
  return { begin };
})();
