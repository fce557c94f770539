// Which page this is.
(() => {
  const [kind, batch, task, ...more] = location.pathname.split("/").slice(1).map(part => decodeURIComponent(part));
  if (kind === "" && !batch) Overview.begin();
  else if (kind === "cost" && batch === undefined) CostPage.begin();
  else if (kind === "batches" && batch && !task && !more.length) BatchPage.begin(batch);
  else if (kind === "batches" && batch && task && !more.length) TaskPage.begin(batch, task);
  else {
    Frame.begin("", "Not found").replaceChildren(Dom.el("h1", { class: "headline", text: "There is nothing here" }), Dom.el("p", { class: "soft", text: "No batch and no task has this address." }));
  }
})();
