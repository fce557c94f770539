// A task file that is dropped on the page, or chosen: asked about, and sent.
const Dropping = (() => {
  const { el } = Dom;
  const TITLE = "Submit a task file";
  const submit = file => Orders.ask(TITLE, { verb: "submit", name: file.name, size: file.size }, file);
  const over = is => document.body.toggleAttribute("data-dropping", is);
  const holdsFiles = event => event.dataTransfer && event.dataTransfer.types.includes("Files");

  if (Orders.may("submit")) {
    document.addEventListener("dragover", event => { if (holdsFiles(event)) { event.preventDefault(); over(true); } });
    document.addEventListener("dragleave", event => { if (!event.relatedTarget) over(false); });
    document.addEventListener("drop", event => {
      if (!holdsFiles(event)) return;
      event.preventDefault();
      over(false);
      const [file, ...others] = event.dataTransfer.files;
      if (others.length) Orders.show(TITLE, el("p", { text: "Drop one file at a time." }));
      else if (file) submit(file);
    });
  }
  // For keyboards and telephones.
  function row() {
    if (!Orders.may("submit")) return el("div", { hidden: true });
    const input = el("input", { type: "file", hidden: true, onchange: () => { if (input.files[0]) submit(input.files[0]); input.value = ""; } });
    return el("div", { class: "order-row" }, el("button", { class: "plain-button", type: "button", text: TITLE, onclick: () => input.click(), "data-order": "submit" }), input);
  }
  return { row };
})();
