// Lists that change in place: what has not changed stays the same element, with its focus and selection.
const Keep = (() => {
  const { el } = Dom;
  const known = new WeakMap();
  // Between the clock of who sends what is shown, and this one.
  let offset = 0;
  const clock = at => { offset = at * 1000 - Date.now(); };

  function list(parent, items, key, render) {
    const before = known.get(parent) || new Map(), after = new Map();
    for (const item of items) {
      const name = key(item), mark = JSON.stringify(item), old = before.get(name);
      if (old && old.mark === mark) { after.set(name, old); continue; }
      const node = render(item);
      if (old && old.node.contains(document.activeElement)) moveFocus(old.node, node, parent);
      after.set(name, { mark, node });
    }
    known.set(parent, after);
    const nodes = [...after.values()].map(kept => kept.node), wanted = new Set(nodes);
    for (const node of [...parent.children]) if (!wanted.has(node)) node.remove();
    nodes.forEach((node, i) => { if (parent.children[i] !== node) parent.insertBefore(node, parent.children[i] || null); });
  }
  // Who stands on a link of a line stays there when the line is rebuilt.
  function moveFocus(from, to, parent) {
    const usable = "a, button, summary, input", at = [...from.querySelectorAll(usable)].indexOf(document.activeElement);
    queueMicrotask(() => { if (parent.contains(to)) to.querySelectorAll(usable)[at]?.focus({ preventScroll: true }); });
  }
  // One element, rebuilt only where what it shows has changed.
  function one(parent, value, render) {
    list(parent, value === null || value === undefined ? [] : [value], () => "", render);
  }
  // How long something has been going on: counted up by `tick`.
  const since = at => el("span", { class: "since", "data-since": String(at), text: lasted(at) });
  const lasted = at => Words.span(Math.max(0, (Date.now() + offset) / 1000 - at));
  function tick() {
    if (document.hidden) return;
    for (const each of document.querySelectorAll("[data-since]")) {
      const text = lasted(Number(each.dataset.since));
      if (each.textContent !== text) each.textContent = text;
    }
  }
  setInterval(tick, 1000);
  // Which of a batch's tasks were listed last, in this tab: the way back leads there.
  const listed = (batch, query) => {
    const key = `list ${batch}`;
    if (query !== undefined) sessionStorage.setItem(key, query);
    return sessionStorage.getItem(key) || "";
  };
  return { list, one, since, listed, clock };
})();
