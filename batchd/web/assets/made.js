// What a task has made: its patch, and its files. Texts and images are shown here, all else is saved by the browser.
const Made = (() => {
  const { el } = Dom;
  const SIGNS = { created: "+", modified: "~" };

  function shown(given) {
    if (given.image) return el("img", { src: given.image, alt: "" });
    if (given.text === undefined) return el("p", { class: "soft", text: `No text and no image: ${Words.counted(given.size, "byte")}.` });
    return el("div", {}, el("pre", { text: given.text || "(empty)" }), given.cut ? el("p", { class: "soft", text: `… ${Words.counted(given.cut, "byte")} more in the file` }) : null);
  }
  function file(at, { path, change }) {
    const query = `?path=${encodeURIComponent(path)}`, inside = el("div", { class: "inside" });
    const made = el("details", { class: "file" },
      el("summary", {}, el("span", { class: "path", text: path }), el("span", { class: "counts soft", text: `${SIGNS[change]} ${change}` })),
      inside);
    made.addEventListener("toggle", async () => {
      if (!made.open || inside.firstChild) return;
      const save = el("a", { class: "save", href: `${at}/file${query}`, download: path.split("/").pop(), text: "Save the file" });
      try { inside.replaceChildren(shown(await Live.get(`${at}/preview${query}`)), save); }
      catch (error) { inside.replaceChildren(el("p", { class: "soft", text: error.message || String(error) })); }
    });
    return made;
  }
  // What people look for first: what was said last, and what was thought of it.
  function ended({ answer, answer_tree: tree, answer_cut: cut, verdict }) {
    const by = verdict && (verdict.by === "none" ? "No evaluation was asked for: the task's word is taken." : `${verdict.by === "check" ? "The check" : verdict.by === "judge" ? "The judge" : "The schema"} ${verdict.done ? "accepts it." : "does not accept it."}`);
    return [
      verdict ? el("section", { class: "verdict", "aria-label": "Verdict" }, el("h2", { text: "Verdict" }), el("p", { class: "status", "data-status": verdict.done ? "completed" : "timeout", "data-mark": Words.MARKS[verdict.done ? "completed" : "error"], text: by }), verdict.text ? el("pre", { class: "box", text: verdict.text }) : null) : null,
      answer ? el("section", { "aria-label": "Answer" }, el("h2", { text: "Answer" }), Dom.prose(answer, tree, "said box"), cut ? el("p", { class: "soft", text: `… ${Words.counted(cut, "character")} more in its result` }) : null) : null,
    ].filter(Boolean);
  }
  async function fill(box, outcome, at) {
    let given;
    try { given = await Live.get(`${at}/made`); } catch (error) { box.replaceChildren(el("p", { class: "soft", text: error.message || String(error) })); return; }
    outcome.replaceChildren(...ended(given));
    const none = given.listed && !given.files.length && !given.deleted.length && !given.patch;
    box.replaceChildren(
      ...(none ? [el("h2", { text: "Files" }), el("p", { class: "soft", text: "It has changed no file." })] : []),
      ...(given.patch ? [el("h2", { text: "Changes" }), Diff.render(given.patch)] : []),
      ...(given.deleted && given.deleted.length ? [el("h2", { text: "Deleted" }), el("p", { class: "mono", text: given.deleted.join("\n") })] : []),
      ...(given.files.length ? [el("h2", { text: "Files" }), el("div", { class: "diff made" }, given.files.map(each => file(at, each)), given.more ? el("p", { class: "soft", text: `… ${Words.counted(given.more, "more file")}` }) : null)] : []));
  }
  // `outcome`: where answer and verdict go.
  function section(at, outcome) {
    const box = el("section", { "aria-label": "What it made" });
    fill(box, outcome, at);
    return box;
  }
  return { section };
})();
