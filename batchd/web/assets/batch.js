// The page of batches, filled by a server or held by a report: how far they are, when what ran, what did not complete, what it cost.
const Batch = (() => {
  const { el } = Dom;
  const STATUSES = ["completed", "timeout", "error", "cancelled", "running", "parked", "queued"];

  // What is sorted, filtered and open stands in the address.
  function read(text) {
    const given = new URLSearchParams(text);
    return { q: given.get("q") || "", sort: given.get("sort") || "failed", page: Math.max(0, parseInt(given.get("page"), 10) || 0), task: given.get("task") || "",
      status: new Set((given.get("status") || "").split(",").filter(s => STATUSES.includes(s))) };
  }
  function query(state) {
    const found = new URLSearchParams();
    if (state.q) found.set("q", state.q);
    if (state.status.size) found.set("status", [...state.status].join(","));
    if (state.sort !== "failed") found.set("sort", state.sort);
    if (state.page) found.set("page", state.page);
    if (state.task) found.set("task", state.task);
    return found;
  }
  // Tasks as the page is given them, a column each, as one object each.
  function tasksOf({ tasks, folders }) {
    const names = Object.keys(tasks);
    return tasks.id.map((_, place) => {
      const made = { place };
      for (const name of names) made[name] = tasks[name][place];
      made.batch = folders[made.folder].name;
      return made;
    });
  }

  function headline(title, done, all) {
    const text = !all ? ["Refused"] : done === all ? [`All ${Words.counted(all, "task")} completed`] : [`${Words.count(done)} `, el("span", { class: "of", text: `of ${Words.counted(all, "task")}` }), " completed"];
    return el("h1", { class: "headline" }, el("span", { class: "unseen", text: `${title}: ` }), text);
  }
  function outcome(counts, all, state, changed) {
    const toggle = s => { if (!state.status.delete(s)) state.status.add(s); state.page = 0; changed(); };
    const part = s => {
      const made = el("button", { class: "part", type: "button", tabindex: "-1", "aria-hidden": "true", "data-fill": s, "data-off": state.status.size > 0 && !state.status.has(s), title: `${Words.count(counts[s])} ${Words.NAMES[s]}`, onclick: () => toggle(s) });
      made.style.flexGrow = String(counts[s] / all);
      return made;
    };
    const chip = s => el("button", { class: "chip", type: "button", "aria-pressed": String(state.status.has(s)), "data-chip": s, onclick: () => toggle(s) },
      el("span", { class: "swatch", "data-fill": s }), el("span", {}, el("b", { text: Words.count(counts[s]) }), ` ${Words.NAMES[s]}`));
    // A filter whose last task has moved on can still be taken away.
    const chips = STATUSES.filter(s => counts[s] || state.status.has(s));
    return el("div", {}, el("div", { class: "whole" }, STATUSES.filter(s => counts[s]).map(part)), el("div", { class: "legend", role: "group", "aria-label": "Show only" }, chips.map(chip)));
  }
  // `total`: calls, tokens and money; `b`: tasks, completed, ended, and how long: `took_s`, of that at work `run_s`, or `since` while it is open.
  function figures(total, b) {
    const each = total.unpriced_calls || !b.completed || !total.known_usd ? "" : `${Words.money(total.known_usd / b.completed)} a completed task`;
    const money = total.unsettled_calls ? `and at most ${Words.money(total.unsettled_usd)} unsettled` : total.unpriced_calls ? `no price known for ${Words.counted(total.unpriced_calls, "call")}` : b.budget_usd ? [`of ${Words.money(b.budget_usd)}`, each].filter(Boolean).join(", ") : each;
    const cache = total.cache_share, saved = total.cache_saved;
    const kept = cache === null ? "the provider says nothing of it" : saved === null ? "what it saved is not known" : saved < 0 ? `writing it cost ${Words.money(-saved)} more than it saved` : `saved ${Words.money(saved)}`;
    return [
      b.ended && { label: "Success", value: Words.percent(b.completed / b.ended), sub: `${Words.count(b.completed)} of ${Words.count(b.ended)}${b.ended < b.tasks ? " that ended" : ""}` },
      (total.calls || total.unsettled_calls) && { label: "Cost", value: Money.spent(total), sub: money, warn: Boolean(total.unsettled_calls || total.unpriced_calls) },
      total.calls && { label: "Tokens", value: `${total.estimated_calls ? "≈ " : ""}${Words.compact(total.tokens)}`, sub: `${Words.compact(total.input)} in; ${Words.compact(total.output)} out` },
      total.calls && { label: "Input from the prompt cache", value: cache === null ? "not known" : Words.percent(cache), sub: kept },
      b.tasks && (b.since ? { label: "Open for", since: b.since } : { label: "Time", value: Words.duration(b.took_s), sub: b.run_s > b.took_s ? `for ${Words.duration(b.run_s)} of work` : "" }),
      total.calls && { label: "Model calls", value: Words.compact(total.calls), sub: b.ended ? `${(total.calls / b.ended).toFixed(1)} ${b.ended < b.tasks ? "an ended task" : "a task"}` : "" },
    ].filter(Boolean);
  }
  const figure = f => el("div", {}, el("dt", { text: f.label }), el("dd", {}, f.since ? Keep.since(f.since) : f.value), f.sub ? el("dd", { class: `sub${f.warn ? " warn" : ""}`, text: f.sub }) : null);

  function section(id, title, lead, ...inside) {
    return el("section", { id, "aria-labelledby": `${id}-title` }, el("h2", { id: `${id}-title`, text: title }), lead ? el("p", { class: "lead", text: lead }) : null, inside);
  }
  // What is cancelled is mostly a consequence of the rest. Of different messages of one reason so many are shown.
  const WEIGHTS = { error: 0, timeout: 1, cancelled: 2 }, MOST_CAUSES = 8;
  // What did not complete by its reason, the largest group first; each by its words, numbers apart.
  function causes(tasks) {
    const weight = group => WEIGHTS[group[0].status], largest = (a, b) => b.length - a.length || a[0].place - b[0].place;
    const groups = Tasks.grouped(tasks.filter(t => t.reason && t.status in WEIGHTS), t => `${t.status} ${t.reason}`);
    return groups.sort((a, b) => weight(a) - weight(b) || largest(a, b)).map(group => {
      const alike = Tasks.grouped(group, t => t.why.replace(/\d+/g, "#")).sort(largest), rest = alike.slice(MOST_CAUSES).flat();
      return { group, causes: [...alike.slice(0, MOST_CAUSES).map(list => [list[0].why, list]), ...(rest.length ? [["other messages", rest]] : [])] };
    });
  }
  // How the tasks of a group ended, in words: of rounds, from the fewest to the most.
  function ended(group) {
    const [{ status, reason }] = group, rounds = group.map(t => t.rounds), least = rounds.reduce((a, b) => Math.min(a, b)), most = rounds.reduce((a, b) => Math.max(a, b));
    return reason === "max_iterations" && least < most ? `not accepted after ${least} to ${Words.counted(most, "round")}` : Words.outcome(status, reason, most);
  }
  function setback({ group, causes: list }, advice, { link, only, name }) {
    const [{ status, reason }] = group;
    const cause = ([message, tasks]) => el("div", {},
      el("p", { class: "message", text: `${tasks.length > 1 && list.length > 1 ? `${Words.count(tasks.length)} × ` : ""}${message}` }),
      el("p", { class: "names" }, tasks.slice(0, 12).map(t => link(t, name(t))),
        tasks.length > 12 ? el("button", { class: "link", type: "button", text: `and ${Words.count(tasks.length - 12)} more`, onclick: () => only([status], Words.reason(reason)) }) : null));
    return el("article", { class: "setback", "data-status": status },
      el("div", { class: "count", text: Words.count(group.length) }),
      el("h3", { text: ended(group) }),
      el("p", { class: "advice" }, (advice[reason] || "").split("`").map((text, i) => (i % 2 ? el("code", { text }) : text))), el("div", { class: "causes" }, list.map(cause)));
  }
  function setbacks(content, tasks, ways) {
    const found = causes(tasks);
    if (!found.length) return null;
    const orders = content.orders.slice(0, 5).map(text => el("code", { class: "order", text }));
    return section("setbacks", "What did not complete", "", el("div", { class: "setbacks" }, found.map(each => setback(each, content.advice, ways))),
      orders.length ? el("p", { class: "orders" }, "Once that is fixed, to run these again:", orders) : null);
  }
  function caution(one, tasks, { link, name }) {
    const files = one.files === null ? [el("p", { class: "soft", text: "It ended before batchd looked." })] : one.files.map(file => el("div", { class: "file" },
      el("p", {}, el("span", { text: file.path }), el("span", { class: "soft", text: ` · ${file.change}${file.by ? `, for ${file.by}` : ", batchd could not look into it"}` })), el("code", { class: "order", text: file.show })));
    return el("article", { class: "caution" },
      el("h3", {}, link(tasks[one.task], name(tasks[one.task])), el("span", { class: "soft", text: ` · ${one.directory}` })),
      files, one.more ? el("p", { class: "soft", text: `and ${Words.count(one.more)} more, in its result` }) : null);
  }
  function cautions(content, tasks, ways) {
    const shown = content.cautions.slice(0, 50), more = content.cautions.length - shown.length;
    if (!shown.length) return null;
    return section("cautions", "Runs code when you use this directory", "Changed by these tasks, and run or obeyed by git, editors, shells, agents or tools as soon as somebody works there. The commands show what it is, and run nothing.",
      ...shown.map(one => caution(one, tasks, ways)), more ? el("p", { class: "soft", text: `and ${Words.counted(more, "more task")}: runs_code in their results` }) : null);
  }
  // Batches, models or tags side by side, by the tasks that have ended.
  function groups(title, what, list) {
    const heads = ["Tasks", "Accepted", "%", "Rounds", "Median time", "$ an accepted task"];
    const line = g => {
      const cells = [Words.count(g.tasks), Words.count(g.accepted), Words.percent(g.success_rate), g.iterations_mean === null ? "" : g.iterations_mean.toFixed(1), Words.duration(g.run_s_median), g.cost_per_accepted === null ? (g.cost === null ? "unknown" : "") : Words.money(g.cost_per_accepted)];
      return el("tr", {}, el("th", { scope: "row", "data-column": "id" }, Dom.name(g.name), el("span", { class: "bar", "aria-hidden": "true" }, Dom.fill("completed", g.success_rate))), cells.map((text, i) => el("td", { class: "num", "data-label": text === "" || heads[i] === "%" ? null : heads[i].replace("$ ", ""), text })));
    };
    return el("div", {}, el("h3", { text: title }), el("table", { class: "grid beside" }, el("caption", { class: "unseen", text: title }),
      el("thead", {}, el("tr", {}, [what, ...heads].map((text, i) => el("th", { scope: "col", class: i && "num", text })))), el("tbody", {}, list.map(line))));
  }
  // The same task in each batch, or the same prompt on each model: a mark for how it ended.
  function matrix({ columns, rows, by, more }, tasks, { mark }) {
    const cell = places => el("td", {}, places.slice(0, 8).map(i => mark(tasks[i])), places.length > 8 ? el("span", { class: "soft", text: ` +${Words.count(places.length - 8)}` }) : null);
    const line = row => { const first = tasks[row.find(places => places.length)[0]]; return el("tr", {}, el("th", { scope: "row" }, by === "batch" ? el("span", { text: first.id }) : null, el("span", { class: "prompt", text: first.prompt })), row.map(cell)); };
    const title = by === "batch" ? "Task by task" : "Prompt by prompt";
    return el("div", {}, el("h3", { text: title }), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `${title}, ${by} by ${by}` }, el("table", { class: "matrix" }, el("caption", { class: "unseen", text: title }),
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: by === "batch" ? "Task" : "Prompt" }), columns.map(name => el("th", { scope: "col" }, Dom.name(name))))), el("tbody", {}, rows.map(line)))),
      el("p", { class: "saved soft", text: `${more ? `${Words.count(rows.length)} of ` : ""}${Words.counted(rows.length + more, by === "batch" ? "task" : "prompt")}; those that did not end alike come first.` }));
  }
  function sideBySide(content, tasks, ways) {
    const parts = [["By batch", "Batch", content.by_batch], ["By model", "Model", content.by_model], ["By tag", "Tag", content.by_tag]].filter(([, , list]) => list.length).map(each => groups(...each));
    if (content.grid) parts.push(matrix(content.grid, tasks, ways));
    return parts.length ? section("beside", "Side by side", "Of the tasks that have ended. All that a task cost, its judge included, counts for the task's own model.", el("div", { class: "stack" }, parts)) : null;
  }
  function money(content, tasks) {
    const { total } = content;
    if (!total.calls && !total.unsettled_calls) return null;
    const left = el("div", { class: "stack" }, Money.shares("By model", "Model", content.models), Money.nodes(tasks) || "", content.tags.length ? Money.shares("By tag", "Tag", content.tags) : ""), right = el("div", { class: "stack" }, Money.shares("By purpose", "Purpose", content.purposes), Money.elsewhere(content));
    const missing = Money.missing(total);
    return section("money", "Money and tokens", "", el("div", { class: "columns" }, left, right), missing.length ? el("div", { class: "notes" }, missing.map(text => el("p", { text }))) : null);
  }
  function leaders(tasks, ways) {
    const made = [Money.slowest(tasks, ways), Money.costliest(tasks, ways)].filter(Boolean);
    return made.length ? section("leaders", "Slowest and costliest", "", el("div", { class: "columns" }, made)) : null;
  }
  // What stands above the table. `ways`: link(task, text), mark(task), open(task), name(task), only(statuses, text), shows(task).
  function parts(content, tasks, ways) {
    const timeline = Timeline.create(content, tasks, ways);
    const when = timeline && section("timeline", "Timeline", "", timeline.root), beside = sideBySide(content, tasks, ways);
    // Who opens several batches compares them.
    const first = content.by_batch.length > 1 ? [beside, when] : [when], then = content.by_batch.length > 1 ? null : beside;
    return { timeline, nodes: [...first, setbacks(content, tasks, ways), cautions(content, tasks, ways), then, money(content, tasks), leaders(tasks, ways)].filter(Boolean) };
  }
  return { read, query, tasksOf, headline, outcome, figures, figure, section, parts, STATUSES };
})();
