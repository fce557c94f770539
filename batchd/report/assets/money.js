// What it cost: by model and purpose, elsewhere, and who took most of money and time.
const Money = (() => {
  const { el } = Dom, bars = Bars.table;
  const MOST = 10;

  const tokens = share => share.input_tokens + share.output_tokens;
  // Money as far as prices are known, and whether that is all of it.
  function spent(share) {
    if (!share.unpriced_calls) return Words.money(share.usd);
    return share.unpriced_calls >= share.calls ? "unknown" : `> ${Words.money(share.usd)}`;
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
      name: s.name, bar: [["accent", priced ? s.usd : tokens(s)]],
      cells: [Words.compact(s.calls), `${s.estimated_calls ? "≈ " : ""}${Words.compact(tokens(s))}`, spent(s), ...(open ? [Words.uncertain(s)] : [])],
    }));
    return el("div", {}, el("h3", { text: title }), bars(title, [what, "Calls", "Tokens", "Cost", ...(open ? ["Uncertain"] : [])], rows));
  }
  function nodes(list) {
    if (!list.length) return null;
    const rows = list.map(n => ({
      name: n.name || "the daemon's machine", bar: [["tool", n.tool_s / n.tasks], ["other", Math.max(0, n.run_s - n.tool_s) / n.tasks]],
      cells: [Words.count(n.tasks), Words.duration(n.run_s / n.tasks), `${n.unpriced ? "> " : ""}${Words.money(n.usd)}`],
    }));
    return el("div", {}, el("h3", { text: "By node" }), bars("By node", ["Node", "Tasks", "A task", "Cost"], rows));
  }
  function elsewhere(content) {
    const { total, elsewhere: others } = content;
    if (!others.length) return null;
    const known = !total.unpriced_calls, own = { name: "this report", usd: known ? total.usd : null, own: true };
    const rows = [...others, own].sort((a, b) => (a.usd === null) - (b.usd === null) || a.usd - b.usd).map(o => ({
      name: o.dearest ? `${o.name}, at its dearest` : o.name, own: o.own, bar: [[o.own ? "accent" : "muted", o.usd || 0]],
      cells: [o.own || o.usd === null || !known || !total.usd ? "" : ratio(o.usd / total.usd), Words.money(o.usd)],
    }));
    return el("div", {}, el("h3", { text: "The same tokens elsewhere" }), bars("The same tokens with other models", ["Model", "Ratio", "Cost"], rows));
  }
  const ratio = r => `${r >= 100 ? Words.count(Math.round(r)) : r >= 10 ? r.toFixed(0) : r >= 1 ? r.toFixed(1) : r.toPrecision(2)} ×`;

  function top(tasks, value) {
    return tasks.id.map((_, i) => i).filter(i => value(i) > 0).sort((a, b) => value(b) - value(a)).slice(0, MOST);
  }
  function leaders(title, heads, places, row, { open, name, excerpt }) {
    if (!places.length) return null;
    const rows = places.map(i => ({ ...row(i), head: el("span", { class: "leader" }, el("button", { class: "link", type: "button", onclick: () => open(i), text: name(i) }), el("span", { class: "soft", text: excerpt(i) })) }));
    return el("div", {}, el("h3", { text: title }), bars(title, heads, rows));
  }
  function dearest(content, ways) {
    const t = content.tasks, priced = t.usd.some(usd => usd > 0), value = i => (priced ? t.usd[i] : t.tokens[i]) || 0;
    return leaders(priced ? "Dearest" : "Most tokens", ["Task", "Tokens", "Cost"], top(t, value),
      i => ({ bar: [[t.status[i], value(i)]], cells: [Words.compact(t.tokens[i]), Words.money(t.usd[i])] }), ways);
  }
  function slowest(content, ways) {
    const t = content.tasks, rest = i => Math.max(0, t.run_s[i] - t.model_s[i] - t.tool_s[i]);
    const made = leaders("Slowest", ["Task", "At work"], top(t, i => t.run_s[i] || 0),
      i => ({ bar: [["model", t.model_s[i]], ["tool", t.tool_s[i]], ["other", rest(i)]], cells: [Words.duration(t.run_s[i])] }), ways);
    const key = (colour, text) => el("span", {}, el("span", { class: "swatch", "data-fill": colour }), text);
    if (made) made.append(el("p", { class: "key" }, key("model", "waiting for the model"), key("tool", "running commands"), key("other", "the rest")));
    return made;
  }
  function notes(content) {
    const { total } = content, lines = [];
    if (total.unpriced_calls) lines.push(`No price is known for ${Words.counted(total.unpriced_calls, "call")}: what they cost is not in the sums.`);
    if (total.unsettled_calls) lines.push(`${Words.counted(total.unsettled_calls, "call")} may have been paid without an answer on record: at most ${Words.money(total.unsettled_usd)} more, not in the sums.`);
    if (total.estimated_calls) lines.push(`≈ The provider counted no tokens for ${Words.counted(total.estimated_calls, "call")}; batchd did.`);
    return lines.length ? el("div", { class: "notes" }, lines.map(text => el("p", { text }))) : null;
  }
  return { shares, nodes, elsewhere, dearest, slowest, spent, notes, tokens };
})();
