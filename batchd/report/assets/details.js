// One task in full, in a panel beside the page. Its block is inflated when it is opened.
const Details = (() => {
  const { el } = Dom;
  const dialog = document.getElementById("details");
  let content, neighbours, closed, shown = -1;

  async function inflated(place) {
    const [start, length] = content.tasks.block[place];
    if (!length) return null;
    const packed = atob(document.getElementById("blocks").textContent.slice(start, start + length));
    const stream = new Blob([Uint8Array.from(packed, c => c.charCodeAt(0))]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  }
  const fact = (name, value, wide) => (value === "" || value === null || value === undefined ? null : el("div", { class: wide && "wide" }, el("dt", { text: name }), el("dd", { text: value })));
  const part = (title, ...inside) => el("section", {}, el("h3", { text: title }), ...inside);

  function facts(place, full) {
    const t = content.tasks, timing = (full && full.timing) || {}, usage = full && full.usage;
    const tokens = usage ? `${Words.count(usage.input_tokens)} in, ${Words.count(usage.output_tokens)} out` : Words.count(t.tokens[place]);
    const unsettled = t.unsettled_usd[place];
    return el("dl", { class: "facts" },
      fact("Status", Words.outcome(t.status[place], t.reason[place], t.rounds[place])),
      fact("Model", t.model[place]),
      fact("Started", t.started_at[place] ? `${Words.day(t.started_at[place])}, ${Words.clock(t.started_at[place])}` : "never"),
      fact("At work", Words.duration(t.run_s[place])),
      fact("Model and tools", timing.model_s === undefined ? "" : `${Words.duration(timing.model_s)}, ${Words.duration(timing.tool_s)}`),
      fact("Waited for a turn", timing.waited_s >= 0.05 ? Words.duration(timing.waited_s) : ""),
      fact("Parked", t.parked_s[place] ? Words.duration(t.parked_s[place]) : ""),
      fact("Rounds", Words.count(t.rounds[place])),
      fact("Model calls", Words.count(t.calls[place])),
      fact("Tokens", `${tokens}${t.estimated[place] ? " (estimated)" : ""}`),
      fact("Cost", Words.money(t.usd[place])),
      fact("Unsettled", unsettled ? `at most ${Words.money(unsettled)} more` : ""),
      full && full.attempts > 1 ? fact("Attempts", Words.count(full.attempts)) : null,
      full ? fact("Worker", full.worker) : null,
      full && full.tags.length ? fact("Tags", full.tags.join(", ")) : null,
      full ? fact("Directory", full.directory, true) : null);
  }
  // What a browser shows as it is, and runs nothing of. What else a task made has no link: a page of a model's is none of ours.
  const PLAIN = /\.(txt|md|rst|csv|tsv|log|json|jsonl|ya?ml|toml|ini|cfg|py|js|ts|c|h|cc|cpp|hpp|rs|go|java|rb|sh|sql|css|png|jpe?g|gif|webp)$/i;
  const path = name => name.split("/").map(encodeURIComponent).join("/");
  function file(name, own) {
    return own && PLAIN.test(name) ? el("a", { href: own + path(name), rel: "noopener", target: "_blank", text: name }) : el("span", { text: name });
  }
  function changed(files, place) {
    const signs = { created: "+", modified: "~", deleted: "−" }, own = content.tasks.own[place] && content.folders[content.tasks.folder[place]].link + content.tasks.own[place];
    const lines = Object.entries(files).flatMap(([kind, { count, names }]) => [
      ...names.map(name => el("li", { "data-sign": signs[kind] }, file(name, kind !== "deleted" && own))),
      count > names.length ? el("li", { "data-sign": signs[kind], text: `… ${Words.count(count - names.length)} more ${kind}` }) : null,
    ]).filter(Boolean);
    return lines.length ? part("Files", el("ul", { class: "files" }, lines)) : null;
  }
  function transcript(place, full) {
    const t = content.tasks, file = t.transcript[place];
    const link = file ? el("a", { href: content.folders[t.folder[place]].link + file, text: decodeURIComponent(file) }) : null;
    if (full && full.passages && full.passages.length) return part("Transcript", Conversation.render(full.passages), link ? el("p", { class: "soft" }, "Every event: ", link) : null);
    if (link) return part("Transcript", el("p", {}, "Not in this page; it lies beside it: ", link));
    return part("Transcript", el("p", { class: "soft", text: t.started_at[place] ? "It is not kept any more." : "There is none: the task never started." }));
  }
  function body(place, full) {
    const t = content.tasks, status = t.status[place], message = full && full.error ? full.error.message : t.message[place];
    const http = full && full.error && full.error.http_status ? ` (HTTP ${full.error.http_status})` : "";
    const verdict = full && full.evaluation;
    const embedded = full && full.passages && full.passages.length;
    const prompt = full && full.prompt ? full.prompt : t.prompt[place];
    return el("div", { class: "body" },
      message ? el("p", { class: "box said", "data-tone": status, text: message + http }) : null,
      facts(place, full),
      prompt ? part("Prompt", Dom.prose(full ? prompt : `${prompt} …`, full && full.prompt_tree)) : null,
      full ? null : el("p", { class: "soft", text: `This page has only the beginning of the prompt: ${t.id[place]}.json has the rest, and the answer.` }),
      full && full.answer ? part("Answer", Dom.prose(full.answer, full.answer_tree, "box said")) : null,
      full && full.left_out ? el("p", { class: "soft", text: `${Words.count(full.left_out)} characters of prompt and answer are left out here; the result's file has them.` }) : null,
      verdict && (verdict.feedback || !embedded) ? part("Last verdict", el("p", { class: "said", text: `${verdict.by}: ${verdict.done ? "done" : "not done"}${verdict.feedback ? `\n${verdict.feedback}` : ""}` })) : null,
      full && full.patch ? part("Changes", Diff.render(full.patch)) : null,
      full && full.files && !(full.patch && full.patch.text) ? changed(full.files, place) : null,
      transcript(place, full));
  }
  function top(place) {
    const t = content.tasks, [before, after] = neighbours(place);
    const go = (to, label, text) => el("button", { class: "plain-button", type: "button", "aria-label": label, disabled: to < 0, onclick: () => open(to, label), text });
    const folder = content.folders.length > 1 ? `${content.folders[t.folder[place]].name}/` : "";
    return el("div", { class: "top" },
      el("h2", { id: "details-title", tabindex: "-1" }, Dom.status(t.status[place], `${folder}${t.id[place]}`)),
      el("div", { class: "buttons" }, go(before, "Previous task", "←"), go(after, "Next task", "→"),
        el("button", { class: "plain-button", type: "button", "aria-label": "Close", onclick: () => dialog.close(), text: "✕" })));
  }
  async function open(place, focus) {
    shown = place;
    let full = null, broken = null;
    try { full = await inflated(place); } catch (error) { broken = String(error); }
    if (shown !== place) return;  // another was asked for meanwhile
    dialog.replaceChildren(top(place), body(place, full));
    if (broken) dialog.append(el("p", { class: "body", text: `Its details cannot be read: ${broken}` }));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    const again = focus && dialog.querySelector(`[aria-label="${focus}"]:not(:disabled)`);
    (again || dialog.querySelector("h2")).focus();
    closed(place);
  }
  // `around(place)` returns the tasks before and after it, -1 where there is none; `changed(place)` hears what is shown, -1: none.
  function start(given, around, changed) {
    content = given; neighbours = around; closed = changed;
    dialog.addEventListener("close", () => { shown = -1; closed(-1); });
    dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  }
  return { start, open, close: () => dialog.close() };
})();
