// The page: what it is given, and what is made of it. What is sorted, filtered and open stands in the address.
(() => {
  const { el } = Dom;
  const content = JSON.parse(document.getElementById("data").textContent);
  const { tasks, counts, folders, total } = content;
  const STATUSES = ["completed", "timeout", "error", "cancelled", "running", "parked", "queued"].filter(s => counts[s]);
  const name = i => (folders.length > 1 ? `${folders[tasks.folder[i]].name}/${tasks.id[i]}` : tasks.id[i]);
  const state = { q: "", status: new Set(), sort: "", page: 0, task: -1 };
  const main = document.getElementById("main");
  let table, timeline;

  // The address

  function read() {
    const given = new URLSearchParams(location.hash.slice(1));
    state.q = given.get("q") || "";
    state.status = new Set((given.get("status") || "").split(",").filter(s => STATUSES.includes(s)));
    state.sort = given.get("sort") || "";
    state.page = Math.max(0, (parseInt(given.get("page"), 10) || 1) - 1);
    state.task = given.has("task") ? tasks.id.findIndex((_, i) => name(i) === given.get("task")) : -1;
  }
  function write() {
    const given = new URLSearchParams();
    if (state.q) given.set("q", state.q);
    if (state.status.size) given.set("status", [...state.status].join(","));
    if (state.sort) given.set("sort", state.sort);
    if (state.page) given.set("page", state.page + 1);
    if (state.task >= 0) given.set("task", name(state.task));
    history.replaceState(null, "", String(given) ? `#${given}` : location.href.split("#")[0]);
  }
  function refresh() {
    table.refresh();
    if (timeline) timeline.draw();
    for (const chip of document.querySelectorAll("[data-chip]")) chip.setAttribute("aria-pressed", String(state.status.has(chip.dataset.chip)));
    for (const part of document.querySelectorAll("[data-part]")) part.toggleAttribute("data-off", state.status.size > 0 && !state.status.has(part.dataset.part));
  }
  function toggle(status) {
    if (!state.status.delete(status)) state.status.add(status);
    state.page = 0;
    refresh(); write();
  }
  function only(statuses, q) {
    Object.assign(state, { status: new Set(statuses), q, page: 0 });
    refresh(); write();
    document.getElementById("tasks").scrollIntoView();
  }
  const open = i => Details.open(i);

  // Its parts

  function head() {
    const done = counts.completed, all = tasks.id.length, left = counts.running + counts.parked + counts.queued;
    const first = Math.min(...folders.map(f => f.received_at));
    const one = folders.length === 1 && folders[0], retried = one && one.retry_of, cancelled = one && one.status === "cancelled";
    return [
      el("div", { class: "brand" }, el("span", {}, el("span", { class: "name", text: content.title }), [" · batchd report", retried && `, a retry of ${retried}`, cancelled && ", cancelled"].filter(Boolean).join("")), el("span", { text: `${Words.day(first)}, ${Words.minute(first)} · times in ${Words.zone()}` })),
      el("h1", { class: "headline" },
        el("span", { class: "unseen", text: `${content.title}: ` }), done === all ? `All ${Words.counted(all, "task")} completed` : [`${Words.count(done)} `, el("span", { class: "of", text: `of ${Words.counted(all, "task")}` }), " completed"]),
      left ? el("p", { class: "soft", text: `${Words.counted(left, "task")} not ended yet` }) : null,
      outcome(all), figures(done, all), content.notes.length ? el("div", { class: "notes" }, content.notes.map(text => el("p", { text }))) : null,
    ];
  }
  function outcome(all) {
    const part = s => {
      const made = el("button", { class: "part", type: "button", tabindex: "-1", "aria-hidden": "true", "data-fill": s, "data-part": s, title: `${Words.count(counts[s])} ${Words.NAMES[s]}`, onclick: () => toggle(s) });
      made.style.flexGrow = String(counts[s] / all);
      return made;
    };
    const chip = s => el("button", { class: "chip", type: "button", "aria-pressed": "false", "data-chip": s, onclick: () => toggle(s) },
      el("span", { class: "swatch", "data-fill": s }), el("span", {}, el("b", { text: Words.count(counts[s]) }), ` ${Words.NAMES[s]}`));
    return el("div", { class: "outcome" }, el("div", { class: "whole" }, STATUSES.map(part)), el("div", { class: "legend", role: "group", "aria-label": "Show only" }, STATUSES.map(chip)));
  }
  function figures(done, all) {
    const figure = (label, value, sub, warn) => el("div", {}, el("dt", { text: label }), el("dd", { text: value }), sub && el("dd", { class: `sub${warn ? " warn" : ""}`, text: sub }));
    const money = total.unsettled_calls ? `and at most ${Words.money(total.unsettled_usd)} unsettled` : total.unpriced_calls ? `no price known for ${Words.counted(total.unpriced_calls, "call")}` : done && total.usd ? `${Words.money(total.usd / done)} a completed task` : "";
    const cache = total.cache_share, saved = total.cache_saved;
    const kept = cache === null ? "the provider says nothing of it" : saved === null ? "what it saved is not known" : saved < 0 ? `writing it cost ${Words.money(-saved)} more than it saved` : `saved ${Words.money(saved)}`;
    return el("dl", { class: "figures" },
      figure("Success", Words.percent(all ? done / all : 0), `${Words.count(done)} of ${Words.count(all)}`),
      figure("Cost", Money.spent(total), money, total.unsettled_calls || total.unpriced_calls),
      figure("Tokens", `${total.estimated_calls ? "≈ " : ""}${Words.compact(Money.tokens(total))}`, `${Words.compact(total.input_tokens)} in; ${Words.compact(total.output_tokens)} out`),
      total.calls ? figure("Input from the prompt cache", cache === null ? "not known" : Words.percent(cache), kept) : null,
      figure("Time", Words.duration(content.wall_s), content.run_s > content.wall_s ? `for ${Words.duration(content.run_s)} of work` : ""),
      figure("Model calls", Words.compact(total.calls), all ? `${(total.calls / all).toFixed(1)} a task` : ""));
  }
  function section(id, title, lead, ...inside) {
    return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title`, text: title }), lead ? el("p", { class: "lead", text: lead }) : null, inside);
  }
  // How the tasks of a setback ended, in words: of rounds, from the fewest to the most.
  function ended(one) {
    const rounds = one.causes.flatMap(cause => cause.tasks.map(i => tasks.rounds[i])), [least, most] = [Math.min(...rounds), Math.max(...rounds)];
    return one.reason === "max_iterations" && least < most ? `not accepted after ${least} to ${Words.counted(most, "round")}` : Words.outcome(one.status, one.reason, most);
  }
  function setback(one) {
    const causes = one.causes.map(cause => el("div", {},
      el("p", { class: "message", text: `${cause.tasks.length > 1 && one.causes.length > 1 ? `${Words.count(cause.tasks.length)} × ` : ""}${cause.message}` }),
      el("p", { class: "names" }, cause.tasks.slice(0, 12).map(i => el("button", { class: "link", type: "button", text: name(i), onclick: () => open(i) })),
        cause.tasks.length > 12 ? el("button", { class: "link", type: "button", text: `and ${Words.count(cause.tasks.length - 12)} more`, onclick: () => only([one.status], Words.reason(one.reason)) }) : null)));
    return el("article", { class: "setback", "data-status": one.status },
      el("div", { class: "count", text: Words.count(one.count) }),
      el("h3", { text: ended(one) }),
      el("p", { class: "advice" }, one.advice.split("`").map((text, i) => (i % 2 ? el("code", { text }) : text))), el("div", { class: "causes" }, causes));
  }
  function setbacks() {
    if (!content.setbacks.length) return null;
    const orders = content.orders.slice(0, 5).map(text => el("code", { class: "order", text }));
    return section("setbacks", "What did not complete", "", el("div", { class: "setbacks" }, content.setbacks.map(setback)),
      orders.length ? el("p", { class: "orders" }, "Once that is fixed, to run these again:", orders) : null);
  }
  function caution(one) {
    const files = one.files === null ? [el("p", { class: "soft", text: "It ended before batchd looked." })] : one.files.map(file => el("div", { class: "file" },
      el("p", {}, el("span", { text: file.path }), el("span", { class: "soft", text: ` · ${file.change}${file.by ? `, for ${file.by}` : ", batchd could not look into it"}` })), el("code", { class: "order", text: file.show })));
    return el("article", { class: "caution" },
      el("h3", {}, el("button", { class: "link", type: "button", text: name(one.task), onclick: () => open(one.task) }), el("span", { class: "soft", text: ` · ${one.directory}` })),
      files, one.more ? el("p", { class: "soft", text: `and ${Words.count(one.more)} more, in its result` }) : null);
  }
  function cautions() {
    const shown = content.cautions.slice(0, 50), more = content.cautions.length - shown.length;
    if (!shown.length) return null;
    return section("cautions", "Runs code when you use this directory", "Changed by these tasks, and run or obeyed by git, editors, shells, agents or tools as soon as somebody works there. The commands show what it is, and run nothing.",
      ...shown.map(caution), more ? el("p", { class: "soft", text: `and ${Words.counted(more, "more task")}: runs_code in their results` }) : null);
  }
  function money() {
    if (!total.calls && !total.unsettled_calls) return null;
    const left = el("div", { class: "stack" }, Money.shares("By model", "Model", content.models), Money.nodes(content.nodes) || "", content.tags.length ? Money.shares("By tag", "Tag", content.tags) : ""), right = el("div", { class: "stack" }, Money.shares("By purpose", "Purpose", content.purposes), Money.elsewhere(content));
    return section("money", "Money and tokens", "", el("div", { class: "columns" }, left, right), Money.notes(content));
  }
  function leaders() {
    const ways = { open, name, excerpt: i => tasks.prompt[i] };
    const made = [Money.slowest(content, ways), Money.dearest(content, ways)].filter(Boolean);
    return made.length ? section("leaders", "Slowest and dearest", "", el("div", { class: "columns" }, made)) : null;
  }

  // All of it

  read();
  table = Table.create(content, { open, state, changed: () => { write(); if (timeline) timeline.draw(); } });
  timeline = Timeline.create(content, { open, shows: i => table.shows(i) });
  Details.start(content, i => table.around(i), place => { state.task = place; write(); });
  document.getElementById("head").replaceChildren(...head().filter(Boolean));
  main.replaceChildren(...[timeline && section("timeline", "Timeline", "", timeline.root), setbacks(), cautions(), money(), leaders(), section("tasks", "All tasks", "", table.root)].filter(Boolean));
  document.getElementById("foot").replaceChildren(el("p", { text: `Made by batchd ${content.version} on ${Words.day(content.made_at)}, ${Words.clock(content.made_at)}. This file asks nothing of any network.` }));
  refresh();
  if (state.task >= 0) open(state.task);
  window.addEventListener("hashchange", () => { read(); refresh(); if (state.task >= 0) open(state.task); });
})();
