// What was spent.
const CostPage = (() => {
  const { el } = Dom;
  const SPLITS = { day: "Day", batch: "Batch", model: "Model", provider: "Provider", purpose: "Purpose", tag: "Tag" };
  const SPANS = { 1: "Today", 7: "7 days", 30: "30 days", 0: "All time" };

  function begin() {
    const content = Frame.begin("/cost", "Cost"), given = new URLSearchParams(location.search);
    const state = { by: given.get("by") in SPLITS ? given.get("by") : "day", days: given.get("days") in SPANS ? given.get("days") : "30" };
    const headline = el("h1", { class: "headline" }), sub = el("p", { class: "soft" }), chart = el("div"), table = el("div", { class: "spent" });
    content.replaceChildren(headline, sub, el("div", { class: "choices" }, choice("Split by", SPLITS, "by"), choice("Over", SPANS, "days")), chart, table);

    function choice(label, options, key) {
      const keys = key === "days" ? ["1", "7", "30", "0"] : Object.keys(options);
      return el("div", { class: "legend", role: "group", "aria-label": label }, keys.map(value => el("button", { class: "chip", type: "button", "data-key": key, "data-value": value, text: options[value], onclick: () => { state[key] = value; show(); } })));
    }
    async function show() {
      for (const chip of content.querySelectorAll(".choices .chip")) chip.setAttribute("aria-pressed", String(state[chip.dataset.key] === chip.dataset.value));
      history.replaceState(null, "", `?by=${state.by}&days=${state.days}`);
      try {
        const data = await Live.get(`/api/cost?by=${state.by}&days=${state.days}`), total = data.total[0];
        headline.replaceChildren(...(total ? [Money.spent(total), el("span", { class: "of", text: ` ${{ 1: "today", 0: "so far" }[state.days] || `in ${SPANS[state.days]}`}` })] : ["Nothing was spent"]));
        sub.textContent = total ? [`${Words.counted(total.calls, "model call")}, ${Words.compact(total.input)} tokens in (${Words.compact(total.cached)} cached), ${Words.compact(total.output)} out.`, ...Money.missing(total)].join(" ") : "";
        Keep.one(chart, data.first && data.first < data.last ? { days: data.days, first: data.first, last: data.last } : null, Days.create);
        table.replaceChildren(...(data.lines.length ? [bars(data)] : []));
        Dom.say(`${Words.counted(data.lines.length, "line")} shown`);
      } catch (error) { Frame.failed(error); }
    }
    function bars({ by, lines, more, total }) {
      const twice = by === "tag" && lines.reduce((sum, l) => sum + l.calls, 0) > total[0].calls;
      const priced = lines.some(l => l.usd > 0);
      const open = lines.some(Words.uncertain);
      const rows = lines.map(l => ({ name: l.name, bar: [["accent", priced ? l.usd : l.tokens]], cells: [Words.compact(l.calls), `${l.estimated_calls ? "≈ " : ""}${Words.compact(l.tokens)}`, Money.spent(l), ...(open ? [Words.uncertain(l)] : [])],
        head: by === "batch" && l.name ? el("span", {}, el("a", { href: `/batches/${encodeURIComponent(l.name)}`, text: l.name }), l.prompt ? el("span", { class: "prompt soft", text: l.prompt }) : null) : null }));
      return el("div", {}, Bars.table(`Cost by ${by}`, [SPLITS[by], "Calls", "Tokens", "Cost", ...(open ? ["Unsettled"] : [])], rows), more ? el("p", { class: "soft more", text: `and ${Words.count(more)} more` }) : null,
        twice ? el("p", { class: "soft more", text: "A task with several tags counts under each: the total is not their sum." }) : null);
    }
    show();
    Live.listen(() => "/live/overview", { now: data => Frame.update(data) }, Frame);
    setInterval(() => { if (!document.hidden) show(); }, 30000);
  }
  return { begin };
})();
