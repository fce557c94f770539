// A patch as files to fold, search and copy. All of it was written by a model, and goes in as text.
const Diff = (() => {
  const { el } = Dom;
  // Files of more lines begin folded, and so do all behind the first few; so many lines stand in the page at a time.
  const LONG = 300, FIRST = 8, AT_ONCE = 3000;
  const HEAD = "diff --git ";
  const SIGNS = { "+": "added", "-": "removed", "@": "place", "\\": "soft" };

  // `changes`: what became of each file, in the order of the patch: path, added, removed (null: no text).
  function files(text, changes) {
    const found = [];
    for (const line of text.split("\n")) {
      // A file that became a link, or the reverse, has two heads, one behind the other.
      if (line.startsWith(HEAD) && !(found.length && found[found.length - 1].lines[0] === line)) found.push({ lines: [line] });
      else if (found.length) found[found.length - 1].lines.push(line);
    }
    const last = found[found.length - 1];
    if (last && last.lines[last.lines.length - 1] === "") last.lines.pop();
    return found.map((file, at) => ({ ...file, ...(changes[at] || { path: file.lines[0].slice(HEAD.length), added: 0, removed: 0 }) }));
  }
  // What stands above the first hunk says nothing that the heading does not, but for modes and new, deleted and binary files.
  const informs = line => /^(new file|deleted file|old mode|new mode|similarity|rename|GIT binary)/.test(line);
  function content(lines) {
    const first = lines.findIndex(line => line.startsWith("@@") || line.startsWith("GIT binary"));
    return first < 0 ? lines.filter(informs) : [...lines.slice(0, first).filter(informs), ...(lines[first].startsWith("GIT") ? ["Binary file"] : lines.slice(first))];
  }
  const counts = file => (file.added === null ? [el("span", { class: "soft", text: "binary" })] : [
    file.added ? el("span", { class: "plus", text: `+${Words.count(file.added)}` }) : null,
    file.removed ? el("span", { class: "minus", text: `−${Words.count(file.removed)}` }) : null]);

  function row(line, text) {
    const made = el("span", { class: "row", "data-is": SIGNS[line[0]], text: line || " " });
    if (text && line.toLowerCase().includes(text)) made.classList.add("hit");
    return made;
  }
  function put(box, lines, start, text) {
    const end = Math.min(lines.length, start + AT_ONCE);
    box.append(...lines.slice(start, end).map(line => row(line, text)));
    if (end < lines.length) {
      const more = el("button", { class: "plain-button", type: "button", text: `Show ${Words.counted(Math.min(AT_ONCE, lines.length - end), "more line")}`, onclick: () => { more.remove(); put(box, lines, end, text); } });
      box.append(more);
    }
  }
  function copier(label, text) {
    const button = el("button", { class: "plain-button copy", type: "button", text: label, onclick: async () => {
      try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { button.textContent = "Select it and copy by hand"; }
      setTimeout(() => { button.textContent = label; }, 2000);
    } });
    return button;
  }
  function folded(file, open) {
    const lines = content(file.lines), box = el("pre", { class: "rows", tabindex: "0", "aria-label": `Changes of ${file.path}` });
    let filled = null;
    const fill = text => { if (filled !== text) { filled = text; box.replaceChildren(); put(box, lines, 0, text); } };
    const made = el("details", { class: "file" },
      el("summary", {}, el("span", { class: "path", text: file.path }), el("span", { class: "counts" }, counts(file))),
      el("div", { class: "inside" }, box, copier("Copy", `${file.lines.join("\n")}\n`)));
    made.addEventListener("toggle", () => { if (made.open) fill(filled || ""); });
    if (open) { fill(""); made.open = true; }
    const searched = `${file.path}\n${lines.join("\n")}`.toLowerCase();
    return { made, find: text => {
      const hit = !text || searched.includes(text);
      made.hidden = !hit;
      if (made.open || (text && hit)) fill(text);
      return hit;
    } };
  }
  // `patch`: what the page was given of one: text, changes, said.
  function render(patch) {
    const found = files(patch.text || "", patch.changes || []);
    const parts = found.map((file, at) => folded(file, at < FIRST && file.lines.length <= LONG));
    const missing = (patch.changes || []).slice(found.length);
    const count = el("p", { class: "soft", role: "status" });
    const search = el("input", { type: "search", placeholder: "Find a file or a line", "aria-label": "Find a file or a line in the changes", oninput: () => {
      const text = search.value.trim().toLowerCase(), hits = parts.filter(part => part.find(text));
      if (text) hits.slice(0, 20).forEach(part => { part.made.open = true; });
      count.textContent = text ? `in ${Words.counted(hits.length, "file")} of ${Words.count(parts.length)}` : "";
    } });
    const fold = open => parts.forEach(part => { if (!part.made.hidden) part.made.open = open; });
    const tools = parts.length ? el("div", { class: "controls" }, parts.length > 1 || found[0].lines.length > 30 ? search : null,
      parts.length > 1 ? el("button", { class: "plain-button", type: "button", text: "Unfold all", onclick: () => fold(true) }) : null,
      parts.length > 1 ? el("button", { class: "plain-button", type: "button", text: "Fold all", onclick: () => fold(false) }) : null,
      copier("Copy the patch", patch.text)) : null;
    return el("div", { class: "diff" }, (patch.said || []).map(line => el("p", { class: "soft", text: line })), tools, count,
      parts.map(part => part.made),
      missing.length ? el("ul", { class: "files" }, missing.map(file => el("li", { "data-sign": "·", text: file.path }))) : null);
  }
  return { render };
})();
