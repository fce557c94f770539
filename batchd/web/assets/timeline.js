// When each agent was at work: a lane for each slot, drawn on a canvas, so that thousands of tasks are no burden.
const Timeline = (() => {
  const { el } = Dom;
  const AXIS = 24, GAP = 10, PARKED = 44, MOST = 460;
  const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];

  // Batches of different days would be slivers with nothing between them.
  function idle(spans) {
    let busy = 0, end = -Infinity;
    const sorted = [...spans].sort((a, b) => a.start - b.start);
    for (const s of sorted) { busy += Math.max(0, s.end - Math.max(s.start, end)); end = Math.max(end, s.end); }
    return busy < 0.2 * (end - sorted[0].start);
  }
  function create(content, tasks, { open, shows }) {
    const bar = ([place, lane, start, end]) => ({ task: tasks[place], lane, start, end });
    const bars = content.bars.map(bar), parked = content.parked.map(bar), { lanes } = content;
    if (!bars.length && !parked.length) return null;
    const all = [...bars, ...parked];
    if (content.by_batch.length > 1 && idle(all)) return null;
    const first = all.reduce((m, b) => Math.min(m, b.start), Infinity), last = all.reduce((m, b) => Math.max(m, b.end), first + 0.001);
    const whole = [first, last + (last - first) * 0.005];
    let view = [...whole], chosen = -1, hovered = -1, width = 0, crowded = false;
    const laneHeight = Math.max(3, Math.min(20, Math.floor(MOST / Math.max(1, lanes))));
    const bottom = lanes * laneHeight, height = bottom + (parked.length ? GAP + PARKED : 0) + AXIS;
    const order = bars.map((_, i) => i);  // they come by their start
    const byLane = Array.from({ length: lanes }, () => []);
    order.forEach(i => byLane[bars[i].lane].push(i));
    const waits = steps(parked);

    const canvas = el("canvas", { tabindex: "0", role: "application", "aria-roledescription": "timeline", "aria-label": label(), "aria-describedby": "timeline-keys" });
    const tip = el("div", { class: "tip", hidden: true });
    const range = el("span");
    const button = (text, name, act) => el("button", { class: "plain-button", type: "button", "aria-label": name, text, onclick: act });
    const root = el("div", { class: "timeline" },
      el("div", { class: "tools" }, range, el("div", {}, button("−", "Zoom out", () => zoom(2)), button("+", "Zoom in", () => zoom(0.5)), button("All", "Show the whole time", () => show(whole)))),
      canvas, tip,
      el("p", { id: "timeline-keys", class: "unseen", text: "Arrow keys go from task to task, Enter opens one, plus and minus zoom, 0 shows all. The table of tasks below has the same." }));

    function label() {
      const most = waits.length ? `; at most ${Words.counted(Math.max(...waits.map(s => s[1])), "task")} waiting at once` : "";
      return `Timeline: ${Words.counted(tasks.length, "task")} in ${Words.counted(lanes, "lane")}, ${Words.clock(first)} to ${Words.clock(last)}${most}`;
    }
    // How many tasks were parked, from moment to moment.
    function steps(spans) {
      const turns = spans.flatMap(s => [[s.start, 1], [s.end, -1]]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      let now = 0;
      return turns.map(([at, by]) => [at, (now += by)]);
    }
    const x = at => ((at - view[0]) / (view[1] - view[0])) * width;
    const colour = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

    function draw() {
      const ratio = window.devicePixelRatio || 1;
      width = root.clientWidth;
      crowded = bars.length * 6 > width * lanes;  // then wider than it was would be a lie
      if (!width) return;
      canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
      const g = canvas.getContext("2d");
      g.scale(ratio, ratio);
      g.font = "12px system-ui, sans-serif";
      const inks = Object.fromEntries(["completed", "error", "timeout", "cancelled", "running", "parked", "queued", "line", "soft", "ink", "sunken"].map(n => [n, colour(n)]));
      axis(g, inks);
      const gap = laneHeight > 6 ? 2 : laneHeight > 3 ? 1 : 0.5;
      g.fillStyle = inks.sunken;
      for (let lane = 0; lane < lanes; lane++) g.fillRect(0, lane * laneHeight, width, laneHeight - gap);
      // What failed is drawn last: however thin, it must not vanish under what went well.
      for (const well of [true, false]) for (const bar of bars) {
        const status = bar.task.status;
        if ((status === "completed") === well && bar.end >= view[0] && bar.start <= view[1]) block(g, bar, inks[status], gap);
      }
      for (const place of new Set([hovered, chosen])) if (place >= 0) outline(g, bars[place], inks.ink, gap);
      if (waits.length) area(g, inks);
      range.textContent = `${Words.counted(lanes, "agent")} at once at most · ${Words.lately(view[0])} to ${Words.lately(view[1])}, ${Words.duration(view[1] - view[0])}`;
      if (view[0] > whole[0] || view[1] < whole[1]) canvas.dataset.zoomed = ""; else delete canvas.dataset.zoomed;
    }
    function box(bar, gap) {
      const from = Math.max(-4, x(bar.start)), to = Math.min(width + 4, x(bar.end));
      const room = to - from;
      const least = bar.task.status === "completed" || crowded ? 1 : 3;
      return [from, bar.lane * laneHeight, Math.max(least, room > 5 ? room - 1 : room), laneHeight - gap];
    }
    function block(g, bar, ink, gap) {
      const [left, upper, wide, high] = box(bar, gap);
      g.globalAlpha = shows(bar.task) ? 1 : 0.15;
      g.fillStyle = ink;
      if (wide > 6 && high > 8) { g.beginPath(); g.roundRect(left, upper, wide, high, 3); g.fill(); }
      else g.fillRect(left, upper, wide, high);
      g.globalAlpha = 1;
    }
    function outline(g, bar, ink, gap) {
      const [left, upper, wide, high] = box(bar, gap);
      g.strokeStyle = ink; g.lineWidth = 2;
      g.strokeRect(left, upper, Math.max(3, wide), high);
    }
    function axis(g, inks) {
      const step = STEPS.find(s => (s / (view[1] - view[0])) * width >= 90) || STEPS.at(-1);
      const show = step < 60 ? Words.clock : step < 86400 ? Words.minute : Words.lately;
      const shift = new Date(view[0] * 1000).getTimezoneOffset() * 60;
      g.textBaseline = "bottom";
      for (let at = Math.ceil((view[0] - shift) / step) * step + shift; at < view[1]; at += step) {
        const left = x(at);
        g.fillStyle = inks.line; g.fillRect(left, 0, 1, height - AXIS + 6);
        g.fillStyle = inks.soft;
        const half = g.measureText(show(at)).width / 2;
        if (left > half && left < width - half) { g.textAlign = "center"; g.fillText(show(at), left, height); }
      }
    }
    function area(g, inks) {
      const base = bottom + GAP + PARKED, most = Math.max(...waits.map(s => s[1]));
      const y = n => base - (n / most) * (PARKED - 16);
      g.beginPath(); g.moveTo(0, base);
      let before = 0;
      for (const [at, n] of waits) { g.lineTo(x(at), y(before)); g.lineTo(x(at), y(n)); before = n; }
      g.lineTo(x(waits.at(-1)[0]), base); g.closePath();
      g.globalAlpha = 0.55; g.fillStyle = inks.parked; g.fill(); g.globalAlpha = 1;
      g.textBaseline = "top"; g.textAlign = "left"; g.fillStyle = inks.soft;
      g.fillText(`waiting: up to ${Words.counted(most, "task")}`, 0, bottom + GAP - 4);
    }

    function show([from, to]) {
      const most = whole[1] - whole[0], least = Math.min(most, 0.5);
      const span = Math.max(least, Math.min(most, to - from));
      const start = Math.max(whole[0], Math.min(from, whole[1] - span));
      view = [start, start + span];
      draw();
    }
    function zoom(factor, around = (view[0] + view[1]) / 2) { show([around - (around - view[0]) * factor, around + (view[1] - around) * factor]); }
    function at(event) {
      const spot = canvas.getBoundingClientRect(), left = event.clientX - spot.left, lane = Math.floor((event.clientY - spot.top) / laneHeight);
      const slack = (3 / width) * (view[1] - view[0]), when = view[0] + (left / width) * (view[1] - view[0]);
      const near = (byLane[lane] || []).filter(i => bars[i].start - slack <= when && when <= bars[i].end + slack);
      return { when, left, found: near.length ? near.reduce((best, i) => (Math.abs(bars[i].start + bars[i].end - 2 * when) < Math.abs(bars[best].start + bars[best].end - 2 * when) ? i : best)) : -1 };
    }
    function texts(bar) {
      const t = bar.task;
      return [t.id, Words.outcome(t.status, t.reason, t.rounds), `${Words.clock(bar.start)}, ${Words.duration(bar.end - bar.start)} · ${Words.money(t.usd)}`, t.prompt];
    }
    function point(place) {
      tip.hidden = place < 0;
      if (place < 0) return;
      const [name, status, when, prompt] = texts(bars[place]), [left, upper, wide] = box(bars[place], 0);
      tip.replaceChildren(el("b", {}, Dom.status(bars[place].task.status, name)), el("div", { text: status }), el("div", { text: when }), el("div", { class: "soft", text: prompt }));
      const middle = Math.max(0, Math.min(width, left + wide / 2));
      tip.style.left = `${Math.max(0, Math.min(width - tip.offsetWidth, middle - tip.offsetWidth / 2))}px`;
      tip.style.top = `${canvas.offsetTop + upper + laneHeight + 6}px`;
    }
    function choose(place) {
      chosen = place;
      const bar = bars[place], span = view[1] - view[0];
      if (bar.start < view[0] || bar.start > view[1]) show([bar.start - span / 2, bar.start + span / 2]); else draw();
      point(place);
      Dom.say(texts(bar).slice(0, 3).join(", "));
    }
    // The bar above or below at about the same time.
    function beside(by) {
      const bar = bars[chosen], lane = byLane[bar.lane + by];
      return lane && lane.length ? lane.reduce((best, i) => (Math.abs(bars[i].start - bar.start) < Math.abs(bars[best].start - bar.start) ? i : best)) : chosen;
    }
    function key(event) {
      if (!order.length || event.ctrlKey || event.metaKey || event.altKey) return;
      const acts = {
        ArrowRight: () => choose(Math.min(order.length - 1, chosen + 1)), ArrowLeft: () => choose(Math.max(0, chosen - 1)),
        ArrowDown: () => choose(chosen < 0 ? 0 : beside(1)), ArrowUp: () => choose(chosen < 0 ? 0 : beside(-1)),
        Home: () => choose(0), End: () => choose(order.length - 1),
        Enter: () => chosen >= 0 && open(bars[chosen].task), "+": () => zoom(0.5, focus()), "=": () => zoom(0.5, focus()), "-": () => zoom(2, focus()), 0: () => show(whole),
        Escape: () => { chosen = -1; point(-1); draw(); },
      };
      if (acts[event.key]) { event.preventDefault(); acts[event.key](); }
    }
    const focus = () => (chosen >= 0 ? bars[chosen].start : undefined);

    let drag = null;
    canvas.addEventListener("pointerdown", event => { drag = { from: event.clientX, view: [...view], moved: false }; });
    canvas.addEventListener("pointermove", event => {
      if (drag && event.buttons) {
        const by = event.clientX - drag.from, span = drag.view[1] - drag.view[0];
        if (Math.abs(by) > 4 || drag.moved) {
          if (!drag.moved) canvas.setPointerCapture(event.pointerId);
          drag.moved = true;
          show([drag.view[0] - (by / width) * span, drag.view[1] - (by / width) * span]);
          point(-1);
          return;
        }
      }
      const { found } = at(event);
      canvas.style.cursor = found >= 0 ? "pointer" : "";
      if (found !== hovered) { hovered = found; draw(); point(found); }
    });
    canvas.addEventListener("pointerup", event => {
      const moved = drag && drag.moved;
      drag = null;
      const { found } = at(event);
      if (!moved && found >= 0) { chosen = found; open(bars[found].task); }
    });
    canvas.addEventListener("pointerleave", () => { hovered = -1; point(-1); draw(); });
    canvas.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return;  // the page must scroll
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, at(event).when);
    }, { passive: false });
    canvas.addEventListener("keydown", key);
    canvas.addEventListener("blur", () => { chosen = -1; point(-1); draw(); });
    new ResizeObserver(draw).observe(root);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    return { root, draw };
  }
  return { create };
})();
