// A task as a conversation: passages become what a person would read. Nothing here knows of a report.
const Conversation = (() => {
  const { el } = Dom;
  const WHO = { system: "batchd", prompt: "Task", thinking: "Thinking", answer: "Model", verdict: "Verdict", failure: "Call failed", note: "", end: "End" };
  const PURPOSES = { agent: "Model", judge: "Judge", compaction: "Summary of what came before" };

  function since(seconds) {
    const whole = Math.max(0, Math.round(seconds)), two = n => String(n).padStart(2, "0");
    const h = Math.floor(whole / 3600);
    return `${h ? `${h}:` : ""}${h ? two(Math.floor(whole / 60) % 60) : Math.floor(whole / 60)}:${two(whole % 60)}`;
  }
  function more(passage) {
    const facts = [];
    if (passage.seconds >= 0.05) facts.push(Words.duration(passage.seconds));
    if (passage.tokens) facts.push(`${Words.count(passage.tokens[0])} tokens in, ${Words.count(passage.tokens[1])} out`);
    return facts.join(" · ");
  }
  function tool(passage) {
    const title = passage.title || "", line = title.split("\n", 1)[0];
    const given = title === line ? passage.given : title;
    const head = [el("span", { class: "command", text: title === line ? line : `${line} …` }), el("span", { class: "took", text: passage.seconds >= 0.05 ? ` · ${Words.duration(passage.seconds)}` : "" })];
    if (!given && !passage.text) return el("div", {}, head);
    return el("details", {}, el("summary", {}, head), given ? el("pre", { class: "given", text: given }) : null, passage.text ? el("pre", { text: passage.text }) : null);
  }
  function body(passage) {
    if (passage.kind === "tool") return [tool(passage)];
    const who = passage.kind === "answer" ? PURPOSES[passage.title] || "Model" : WHO[passage.kind];
    const title = passage.kind === "answer" ? "" : passage.title || "";
    const head = el("div", { class: "who" }, [who, title].filter(Boolean).join(": "), el("span", { class: "more", text: more(passage) ? ` · ${more(passage)}` : "" }));
    if (!passage.text) return [head];
    if (passage.kind === "system" || passage.kind === "thinking") {
      return [el("details", {}, el("summary", { class: "who", text: head.textContent }), el("div", { class: "said", text: passage.text }))];
    }
    return [head, Dom.prose(passage.text, passage.tree)];
  }
  // Returns the conversation as a list; `start` is the moment that times are counted from. `failed`: the last turn that failed is open.
  function render(passages, start, failed = false) {
    const list = el("ol", { class: "conversation" }, passages.map(passage =>
      el("li", { class: "passage", "data-kind": passage.kind, "data-ok": passage.ok === undefined ? null : String(passage.ok) },
        el("span", { class: "when", title: new Date(passage.at * 1000).toISOString(), text: since(passage.at - start) }),
        el("div", { class: "what" }, body(passage), passage.cut ? el("p", { class: "soft", text: `… ${Words.count(passage.cut)} characters more in the transcript's file` }) : null))));
    if (failed) open(list);
    return list;
  }
  // What people look for first in a task that failed.
  function open(list) {
    const last = [...list.querySelectorAll('.passage[data-kind="tool"][data-ok="false"] details')].at(-1);
    if (last) last.open = true;
  }
  return { render, open };
})();
