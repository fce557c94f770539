// What came of a task: the verdict, its answer, its patch, and its files. Texts and images are shown here, all else is saved by the browser.
const Made = (() => {
  const { el } = Dom;
  const SIGNS = { created: "+", modified: "~", deleted: "−" };
  const part = (tag, title, ...inside) => el("section", { "aria-label": title }, el(tag, { text: title }), inside);
  const cut = (count, noun) => (count ? el("p", { class: "soft", text: `… ${Words.counted(count, noun)} more in its result` }) : null);

  // What people look for first: what was thought of it, and what was said last. `tag`: of headings.
  function ended(tag, { answer, answer_tree: tree, answer_cut: rest, verdict }) {
    const by = verdict && (verdict.by === "none" ? "No evaluation was asked for: the task's word is taken." : `${verdict.by === "check" ? "The check" : verdict.by === "judge" ? "The judge" : "The schema"} ${verdict.first ? "passed before any work." : verdict.done ? "accepts it." : "does not accept it."}${verdict.score === null ? "" : ` Its score: ${verdict.score}.`}${verdict.flaky ? " The check is flaky: it gave two verdicts on the same files." : ""}`);
    const made = verdict && part(tag, "Verdict", el("p", { class: "status", "data-status": verdict.done ? "completed" : "timeout", "data-mark": Words.MARKS[verdict.done ? "completed" : "error"], text: by }), verdict.text ? el("pre", { class: "box", text: verdict.text }) : null);
    if (made) made.classList.add("verdict");
    return [made, answer && part(tag, "Answer", Dom.prose(answer, tree, "said box"), cut(rest, "character"))].filter(Boolean);
  }
  // `list(files)`: how they are shown, each a path and a change.
  function changed(tag, given, list) {
    const gone = (given.deleted || []).map(path => ({ path, change: "deleted" })), all = [...given.files, ...gone];
    const none = given.listed && !all.length && !given.patch;
    return [given.patch && part(tag, "Changes", given.apply ? Orders.patch(given.apply) : "", Diff.render(given.patch)), none && part(tag, "Files", el("p", { class: "soft", text: "It has changed no file." })),
      all.length && part(tag, "Files", list(all), cut(given.more, "file"))].filter(Boolean);
  }

  function shown(given) {
    if (given.image) return el("img", { src: given.image, alt: "" });
    if (given.text === undefined) return el("p", { class: "soft", text: `No text and no image: ${Words.counted(given.size, "byte")}.` });
    return el("div", {}, el("pre", { text: given.text || "(empty)" }), given.cut ? el("p", { class: "soft", text: `… ${Words.counted(given.cut, "byte")} more in the file` }) : null);
  }
  // A file that a server sends, when it is opened.
  function file(at, { path, change }) {
    const query = `?path=${encodeURIComponent(path)}`, inside = el("div", { class: "inside" }), counts = el("span", { class: "counts soft", text: `${SIGNS[change]} ${change}` });
    if (change === "deleted") return el("p", { class: "file gone-file" }, el("span", { class: "path", text: path }), counts);
    const made = el("details", { class: "file" }, el("summary", {}, el("span", { class: "path", text: path }), counts), inside);
    made.addEventListener("toggle", async () => {
      if (!made.open || inside.firstChild) return;
      const save = el("a", { class: "save", href: `${at}/file${query}`, download: path.split("/").pop(), text: "Save the file" });
      try { inside.replaceChildren(shown(await Live.get(`${at}/preview${query}`)), save); }
      catch (error) { inside.replaceChildren(el("p", { class: "soft", text: error.message || String(error) })); }
    });
    return made;
  }
  // `outcome`: where answer and verdict go.
  function section(at, outcome) {
    const box = el("div");
    Live.get(`${at}/made`).then(given => {
      outcome.replaceChildren(...ended("h2", given));
      box.replaceChildren(...changed("h2", given, files => el("div", { class: "diff made" }, files.map(each => file(at, each)))));
    }).catch(error => box.replaceChildren(el("p", { class: "soft", text: error.message || String(error) })));
    return box;
  }
  return { section, ended, changed, part, SIGNS };
})();
