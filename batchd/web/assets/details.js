// One task in full, in a panel beside the report. Its block is inflated when it is opened.
const Details = (() => {
  const { el } = Dom;
  const dialog = document.getElementById("details");
  let content, neighbours, closed, shown = null;

  async function inflated(t) {
    const [start, length] = t.block;
    if (!length) return null;
    // Blocks are the most of a page, and come last: what is above them is shown before.
    if (document.readyState === "loading") await new Promise(done => { document.addEventListener("DOMContentLoaded", done, { once: true }); });
    const packed = atob(document.getElementById("blocks").textContent.slice(start, start + length));
    const stream = new Blob([Uint8Array.from(packed, c => c.charCodeAt(0))]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  }
  const fact = (name, value, wide) => (value === "" || value === null || value === undefined ? null : el("div", { class: wide && "wide" }, el("dt", { text: name }), el("dd", { text: value })));
  const part = (title, ...inside) => Made.part("h3", title, ...inside);

  function facts(t, full) {
    const timing = (full && full.timing) || {}, usage = full && full.usage;
    const tokens = usage ? `${Words.count(usage.input_tokens)} in, ${Words.count(usage.output_tokens)} out` : Words.count(t.tokens);
    return el("dl", { class: "facts" },
      fact("Status", Words.outcome(t.status, t.reason, t.rounds)),
      fact("Model", t.model),
      fact("Started", t.started_at ? `${Words.day(t.started_at)}, ${Words.clock(t.started_at)}` : "never"),
      fact("At work", Words.duration(t.run_s)),
      fact("Model and tools", timing.model_s === undefined ? "" : `${Words.duration(timing.model_s)}, ${Words.duration(timing.tool_s)}`),
      fact("Waited for a turn", timing.waited_s >= 0.05 ? Words.duration(timing.waited_s) : ""),
      fact("Waited", t.parked_s ? Words.duration(t.parked_s) : ""),
      fact("Rounds", Words.count(t.rounds)),
      fact("Model calls", Words.count(t.calls)),
      fact("Tokens", `${tokens}${t.estimated ? " (estimated)" : ""}`),
      fact("Cost", Words.money(t.usd)),
      fact("Unsettled", t.unsettled_usd ? `at most ${Words.money(t.unsettled_usd)} more` : ""),
      full && full.near ? fact("Near a limit", full.near) : null,
      full && full.attempts > 1 ? fact("Attempts", Words.count(full.attempts)) : null,
      full ? fact("Worker", full.worker) : null,
      full && full.tags && full.tags.length ? fact("Tags", full.tags.join(", ")) : null,
      full ? fact("Directory", full.directory, true) : null);
  }
  // What a browser shows as it is, and runs nothing of. What else a task made has no link: a page of a model's is none of ours.
  const PLAIN = /\.(txt|md|rst|csv|tsv|log|json|jsonl|ya?ml|toml|ini|cfg|py|js|ts|c|h|cc|cpp|hpp|rs|go|java|rb|sh|sql|css|png|jpe?g|gif|webp)$/i;
  const address = name => name.split("/").map(encodeURIComponent).join("/");
  function files(t, list) {
    const own = t.own && content.folders[t.folder].link + t.own;
    const file = ({ path, change }) => (own && change !== "deleted" && PLAIN.test(path) ? el("a", { href: own + address(path), rel: "noopener", target: "_blank", text: path }) : el("span", { text: path }));
    return el("ul", { class: "files" }, list.map(each => el("li", { "data-sign": Made.SIGNS[each.change] }, file(each))));
  }
  function transcript(t, full) {
    const link = t.transcript ? el("a", { href: content.folders[t.folder].link + t.transcript, text: decodeURIComponent(t.transcript) }) : null;
    if (full && full.passages && full.passages.length) return part("Transcript", Conversation.render(full.passages, full.passages[0].at, t.status !== "completed"), link ? el("p", { class: "soft" }, "Every event: ", link) : null);
    if (link) return part("Transcript", el("p", {}, "Not in this page; it lies beside it: ", link));
    return part("Transcript", el("p", { class: "soft", text: t.started_at ? "It is not kept any more." : "There is none: the task never started." }));
  }
  function body(t, full) {
    const message = full && full.error ? full.error.message : t.why, known = full && full.prompt !== undefined;
    const http = full && full.error && full.error.http_status ? ` (HTTP ${full.error.http_status})` : "";
    const prompt = known ? full.prompt : t.prompt;
    return el("div", { class: "body" },
      message ? el("p", { class: "box said", "data-tone": t.status, text: message + http }) : null,
      facts(t, full),
      prompt ? part("Prompt", Dom.prose(known ? prompt : prompt.endsWith(" …") ? prompt : `${prompt} …`, known && full.prompt_tree), known && full.prompt_cut ? el("p", { class: "soft", text: `… ${Words.counted(full.prompt_cut, "character")} more in its result` }) : null) : null,
      full ? null : el("p", { class: "soft", text: `This page has only the beginning of the prompt: ${t.id}.json has the rest, and the answer.` }),
      known ? [...Made.ended("h3", full), ...Made.changed("h3", full.patch && full.patch.text ? { ...full, files: [], deleted: [], more: 0 } : full, list => files(t, list))] : [],
      transcript(t, full));
  }
  function top(t) {
    const [before, after] = neighbours(t);
    const go = (to, label, text) => el("button", { class: "plain-button", type: "button", "aria-label": label, disabled: !to, onclick: () => open(to, label), text });
    return el("div", { class: "top" },
      el("h2", { id: "details-title", tabindex: "-1" }, Dom.status(t.status, content.folders.length > 1 ? `${t.batch}/${t.id}` : t.id)),
      el("div", { class: "buttons" }, go(before, "Previous task", "←"), go(after, "Next task", "→"),
        el("button", { class: "plain-button", type: "button", "aria-label": "Close", onclick: () => dialog.close(), text: "✕" })));
  }
  async function open(t, focus) {
    shown = t;
    let full = null, broken = null;
    try { full = await inflated(t); } catch (error) { broken = String(error); }
    if (shown !== t) return;  // another was asked for meanwhile
    dialog.replaceChildren(top(t), body(t, full));
    if (broken) dialog.append(el("p", { class: "body", text: `Its details cannot be read: ${broken}` }));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    const again = focus && dialog.querySelector(`[aria-label="${focus}"]:not(:disabled)`);
    (again || dialog.querySelector("h2")).focus();
    closed(t);
  }
  // `around(task)` returns the tasks before and after it; `changed(task)` hears what is shown, null: none.
  function start(given, around, changed) {
    content = given; neighbours = around; closed = changed;
    dialog.addEventListener("close", () => { shown = null; closed(null); });
    dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });
  }
  return { start, open, close: () => dialog.close() };
})();
