// Rows of names and figures, each with a bar.
const Bars = (() => {
  const { el, fill } = Dom;

  // Rows: {name, bar: [[colour, amount], …], cells: [text, …], own, head}.
  function table(caption, heads, rows) {
    const most = Math.max(1e-12, ...rows.map(row => row.bar.reduce((sum, [, amount]) => sum + amount, 0)));
    const line = row => el("tr", { class: row.own && "own" },
      el("th", { scope: "row" }, row.head || Dom.name(row.name), el("span", { class: "bar", "aria-hidden": "true" }, row.bar.map(([colour, amount]) => fill(colour, amount / most)))),
      row.cells.map((text, i) => el("td", { class: "num", "data-column": heads[i + 1].toLowerCase(), text })));
    return el("table", { class: "bars" },
      el("caption", { class: "unseen", text: caption }),
      el("thead", {}, el("tr", {}, heads.map((text, i) => el("th", { scope: "col", class: i && "num", "data-column": text.toLowerCase(), text })))),
      el("tbody", {}, rows.map(line)));
  }
  return { table };
})();
