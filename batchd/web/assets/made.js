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
  async function fill(box, at) {
    let given;
    try { given = await Live.get(`${at}/made`); } catch (error) { box.replaceChildren(el("p", { class: "soft", text: error.message || String(error) })); return; }
    box.replaceChildren(
      ...(given.patch ? [el("h2", { text: "Changes" }), Diff.render(given.patch)] : []),
      ...(given.files.length ? [el("h2", { text: "Files" }), el("div", { class: "diff made" }, given.files.map(each => file(at, each)), given.more ? el("p", { class: "soft", text: `… ${Words.counted(given.more, "more file")}` }) : null)] : []));
  }
  function section(at) {
    const box = el("section", { "aria-label": "What it made" });
    fill(box, at);
    return box;
  }
  return { section };
})();
