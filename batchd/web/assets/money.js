// What it cost: by model and purpose, elsewhere, and who took most of money and time.
const Money = (() => {
  const { el } = Dom, bars = Bars.table;
  const MOST = 10;

  // Money as far as prices are known, and whether that is all of it.
  function spent(share) {
    if (!share.unpriced_calls) return Words.money(share.known_usd);
    return share.unpriced_calls >= share.calls ? "unknown" : `> ${Words.money(share.known_usd)}`;
  }
  // The first few, and the rest as one.
  function shortened(list) {
    if (list.length <= MOST) return list;
    const rest = { ...list[MOST - 1], name: `${list.length - MOST + 1} others` };
    for (const other of list.slice(MOST)) for (const key of Object.keys(rest)) if (key !== "name") rest[key] += other[key];
    return [...list.slice(0, MOST - 1), rest];
  }
  function shares(title, what, list) {
    const priced = list.some(s => s.usd > 0), open = list.some(Words.uncertain);
    const rows = shortened(list.filter(s => s.calls || s.unsettled_calls)).map(s => ({
      name: s.name, bar: [["accent", priced ? s.usd : s.tokens]],
      cells: [Words.compact(s.calls), `${s.estimated_calls ? "≈ " : ""}${Words.compact(s.tokens)}`, spent(s), ...(open ? [Words.uncertain(s)] : [])],
    }));
    return el("div", {}, el("h3", { text: title }), bars(title, [what, "Calls", "Tokens", "Cost", ...(open ? ["Unsettled"] : [])], rows));
  }
  // What each machine did, by the tasks whose last attempt it had: the slowest for a task first; nothing where all ran on the daemon's.
  function nodes(tasks) {
    const groups = Tasks.grouped(tasks.filter(t => t.run_s !== null), t => t.node), sum = (list, value) => list.reduce((total, t) => total + value(t), 0);
    if (!groups.some(([first]) => first.node)) return null;
    const found = groups.map(list => ({ list, run: sum(list, t => t.run_s) / list.length, tool: sum(list, t => t.tool_s) / list.length })).sort((a, b) => b.run - a.run);
    const rows = found.map(({ list, run, tool }) => ({
      name: list[0].node || "the daemon's machine", bar: [["tool", tool], ["other", Math.max(0, run - tool)]],
      cells: [Words.count(list.length), Words.duration(run), `${list.some(t => t.usd === null) ? "> " : ""}${Words.money(sum(list, t => t.usd || 0))}`],
    }));
    return el("div", {}, el("h3", { text: "By node" }), bars("By node", ["Node", "Tasks", "A task", "Cost"], rows));
  }
  function elsewhere(content) {
    const { total, elsewhere: others } = content;
    if (!others.length) return null;
    const known = !total.unpriced_calls, own = { name: "the models that ran", usd: known ? total.usd : null, own: true };
    const rows = [...others, own].sort((a, b) => (a.usd === null) - (b.usd === null) || a.usd - b.usd).map(o => ({
      name: o.highest ? `${o.name}, at its highest` : o.name, own: o.own, bar: [[o.own ? "accent" : "muted", o.usd || 0]],
      cells: [o.own || o.usd === null || !known || !total.usd ? "" : ratio(o.usd / total.usd), Words.money(o.usd)],
    }));
    return el("div", {}, el("h3", { text: "The same tokens elsewhere" }), bars("The same tokens with other models", ["Model", "Ratio", "Cost"], rows));
  }
  const ratio = r => `${r >= 100 ? Words.count(Math.round(r)) : r >= 10 ? r.toFixed(0) : r >= 1 ? r.toFixed(1) : r.toPrecision(2)} ×`;

  const top = (tasks, value) => tasks.filter(t => value(t) > 0).sort((a, b) => value(b) - value(a)).slice(0, MOST);
  function leaders(title, heads, found, row, { link, name }) {
    if (!found.length) return null;
    const rows = found.map(t => ({ ...row(t), head: el("span", { class: "leader" }, link(t, name(t)), el("span", { class: "soft", text: t.prompt })) }));
    return el("div", {}, el("h3", { text: title }), bars(title, heads, rows));
  }
  function costliest(tasks, ways) {
    const priced = tasks.some(t => t.usd > 0), value = t => (priced ? t.usd : t.tokens) || 0;
    return leaders(priced ? "Costliest" : "Most tokens", ["Task", "Tokens", "Cost"], top(tasks, value),
      t => ({ bar: [[t.status, value(t)]], cells: [Words.compact(t.tokens), Words.money(t.usd)] }), ways);
  }
  function slowest(tasks, ways) {
    const rest = t => Math.max(0, t.run_s - t.model_s - t.tool_s);
    const made = leaders("Slowest", ["Task", "At work"], top(tasks, t => t.run_s || 0),
      t => ({ bar: [["model", t.model_s], ["tool", t.tool_s], ["other", rest(t)]], cells: [Words.duration(t.run_s)] }), ways);
    const key = (colour, text) => el("span", {}, el("span", { class: "swatch", "data-fill": colour }), text);
    if (made) made.append(el("p", { class: "key" }, key("model", "waiting for the model"), key("tool", "running commands"), key("other", "the rest")));
    return made;
  }
  // What is missing in a sum, a sentence each.
  function missing(total) {
    return [
      total.unpriced_calls && `No price is known for ${Words.counted(total.unpriced_calls, "call")}: what they cost is not in the sums.`,
      total.unsettled_calls && `${Words.counted(total.unsettled_calls, "call")} may have been paid without an answer on record: at most ${Words.money(total.unsettled_usd)} more, not in the sums.`,
      total.estimated_calls && `≈ The provider counted no tokens for ${Words.counted(total.estimated_calls, "call")}; batchd did.`,
    ].filter(Boolean);
  }
  return { shares, nodes, elsewhere, costliest, slowest, spent, missing };
})();
