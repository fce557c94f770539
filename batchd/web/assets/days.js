// Money by day, as bars; the table below says the same.
const Days = (() => {
  const { el } = Dom;
  const DAY_MS = 86400000, HEIGHT = 190, LEFT = 58, BOTTOM = 24, TOP = 10, MOST = 92;
  const short = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });

  function svg(tag, given = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(given)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }
  // Every day from the first to the last one, those without a call too; of very many, some at a time.
  function spans(days, first, last) {
    const known = new Map(days.map(d => [d.name, d])), all = [];
    for (let at = Date.parse(first); at <= Date.parse(last); at += DAY_MS) all.push([at, known.get(new Date(at).toISOString().slice(0, 10))]);
    const size = Math.ceil(all.length / MOST) || 1, found = [];
    for (let i = 0; i < all.length; i += size) {
      const part = all.slice(i, i + size), sum = key => part.reduce((n, [, d]) => n + (d ? d[key] : 0), 0);
      found.push({ from: part[0][0], to: part[part.length - 1][0], usd: sum("usd"), open: sum("unsettled_usd"), tokens: sum("input") + sum("output"), calls: sum("calls"), unpriced: sum("unpriced_calls") });
    }
    return { size, found };
  }
  // The least of 1, 2, 2.5 and 5 times a power of ten that holds a value.
  function ceiling(value) {
    const power = 10 ** Math.floor(Math.log10(value || 1));
    return [1, 2, 2.5, 5, 10].map(n => n * power).find(n => n >= value * 0.9999);
  }
  const named = ({ from, to }) => (from === to ? short.format(from) : `${short.format(from)} to ${short.format(to)}`);

  function create({ days, first, last }) {
    const { size, found } = spans(days, first, last), priced = found.some(s => s.usd || s.open);
    const value = s => (priced ? s.usd : s.tokens), most = ceiling(Math.max(...found.map(s => value(s) + (priced ? s.open : 0))));
    const show = n => (priced ? Words.money(n) : Words.compact(n));
    const top = found.reduce((best, s) => (value(s) > value(best) ? s : best), found[0]);
    const what = `${priced ? "Cost" : "Tokens"} by day, ${named({ from: found[0].from, to: found[found.length - 1].to })}; most: ${named(top)}, ${show(value(top))}. The table has the figures.`;
    const box = el("div", { class: "plot" }), key = el("p", { class: "key" }, part("accent", priced ? "cost" : "tokens"), found.some(s => s.open) ? part("open", "and at most so much more") : null, el("span", { text: `Days are counted in UTC${size > 1 ? `; a bar is ${size} days` : ""}.` }));
    const root = el("figure", { class: "days" }, box, key);
    new ResizeObserver(() => draw(box.clientWidth)).observe(box);

    function part(fill, text) { return el("span", {}, el("span", { class: "swatch", "data-fill": fill }), text); }
    function draw(width) {
      if (width <= LEFT) return;
      const step = (width - LEFT) / found.length, high = HEIGHT - TOP - BOTTOM, y = n => TOP + high * (1 - n / most);
      const lines = [0, 0.5, 1].flatMap(share => [
        svg("line", { x1: LEFT, x2: width, y1: y(most * share), y2: y(most * share), class: "line" }),
        text(share ? show(most * share) : "0", LEFT - 8, y(most * share) + 4, "end")]);
      const every = Math.ceil(64 / step);
      const bars = found.map((s, i) => {
        const x = LEFT + i * step + step * 0.12, wide = Math.max(1, step * 0.76), title = `${named(s)}: ${show(value(s))}${priced && s.open ? ` and at most ${show(s.open)} more` : ""}, ${Words.counted(s.calls, "call")}${s.unpriced ? `, ${Words.count(s.unpriced)} of them without a price` : ""}`;
        const bar = (from, to, fill) => (to > from ? [svg("rect", { x, width: wide, y: y(to), height: Math.max(1, y(from) - y(to)), class: fill })] : []);
        return svg("g", {}, svg("title", {}, title), svg("rect", { x: LEFT + i * step, width: step, y: TOP, height: high, class: "field" }), ...bar(0, value(s), "bar-known"), ...(priced ? bar(s.usd, s.usd + s.open, "bar-open") : []),
          ...((found.length - 1 - i) % every === 0 ? [text(short.format(s.from), Math.min(width - 22, Math.max(LEFT + 16, x + wide / 2)), HEIGHT - 6, "middle")] : []));
      });
      box.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", "aria-label": what }, ...lines, ...bars));
    }
    const text = (words, x, at, anchor) => svg("text", { x, y: at, "text-anchor": anchor, "aria-hidden": "true" }, words);
    return root;
  }
  return { create };
})();
