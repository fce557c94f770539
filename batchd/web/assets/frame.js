// What stands on every page: where one is, how the daemon does, and what it cannot do.
const Frame = (() => {
  const { el } = Dom;
  const main = document.getElementById("main");
  const crumbs = el("nav", { class: "crumbs", "aria-label": "Where this is" });
  const daemon = el("span", { class: "daemon" }), notices = el("div", { class: "notices" }), content = el("div", { class: "content" });
  const lost = el("p", { class: "lost", hidden: true, role: "status", text: "Not connected. What you see is what was last known; trying again." });

  // `way`: the pages above this one, each an address and a name; the start is above all.
  function begin(here, title, way = []) {
    const link = (address, text) => el("a", { href: address, "aria-current": here === address && "page", text });
    document.getElementById("head").replaceChildren(el("div", { class: "bar-top" },
      el("a", { class: "mark", href: "/", text: "batchd" }),
      el("nav", { "aria-label": "Pages" }, link("/", "Overview"), link("/cost", "Cost")), daemon));
    document.title = title ? `${title} · batchd` : "batchd";
    crumbs.hidden = here === "/";
    crumbs.replaceChildren(el("ol", {}, [["/", "Overview"], ...way].map(([address, text]) => el("li", {}, el("a", { href: address, text }))), title ? el("li", { "aria-current": "page", text: here ? title : title.split("/").pop() }) : null));
    main.replaceChildren(lost, crumbs, notices, content);
    return content;
  }
  function connected(is) {
    lost.hidden = is;
    document.body.toggleAttribute("data-lost", !is);
  }
  // What the head of an event says; `waits`: what is parked, of what is shown. Returns whether there is more to show.
  function update(data, waits = []) {
    const mark = data.trouble ? "trouble" : data.silent ? "silent" : !data.daemon ? "none" : data.daemon.draining ? "draining" : data.daemon.troubles.length ? "trouble" : "running";
    const words = { trouble: "In trouble", silent: "Does not answer", none: "No daemon runs", draining: "Draining", running: "Running" };
    const about = data.daemon && { since: data.daemon.started_at, pid: data.daemon.pid, version: data.daemon.version };
    Keep.one(daemon, { mark, about }, () => el("span", { class: "state", "data-mark": mark },
      el("span", { class: "dot", "aria-hidden": "true" }), words[mark],
      about && el("span", { class: "about soft" }, " for ", Keep.since(about.since), ` · pid ${about.pid} · ${about.version}`)));
    Keep.list(notices, [...troubles(data), ...waits.map(parked)], n => n.key, notice);
    return !data.error && !data.trouble;
  }
  function* troubles(data) {
    if (data.trouble) yield { key: "store", tone: "error", title: "The store cannot be read", text: data.trouble, fix: "" };
    if (data.error) yield { key: "error", tone: "error", title: "This cannot be shown", text: data.error, fix: "" };
    if (data.silent) yield { key: "silent", tone: "timeout", title: "The daemon does not answer", text: "What you see is what the store says.", fix: "" };
    if (data.daemon && data.daemon.differs) yield { key: "version", tone: "timeout", title: "Daemon and page are of different versions", text: data.daemon.differs, fix: "" };
    for (const t of (data.daemon && data.daemon.troubles) || []) yield { key: `t ${t.what} ${t.since}`, tone: "error", title: t.what, text: t.message, fix: t.mend, since: t.since };
  }
  function parked({ what, why, fix, since, again_at, paused, unneeded, scope, name }) {
    const key = `p ${what}`, tone = "parked", order = scope && scope !== "day" ? [["Resume", { verb: "resume", scope, name }]] : [];
    if (paused) return { key, tone, title: `${what} is paused`, text: why, fix, since, order };
    return { key, tone, title: `${what} ${unneeded ? "is out of order" : "waits"}`, text: why.replace(/^[a-z_]+(?=:|$)/, Words.reason), fix, since, next: again_at, order };
  }
  function notice({ tone, title, text, fix, since, next, order = [] }) {
    return el("div", { class: "notice", "data-tone": tone },
      el("p", { class: "title" }, el("b", { text: title[0].toUpperCase() + title.slice(1) }), since ? el("span", { class: "soft" }, " for ", Keep.since(since)) : null),
      text ? el("p", { text }) : null,
      fix ? el("p", { class: "fix" }, el("span", { class: "soft", text: "To go on: " }), withOrder(fix), next ? el("span", { class: "soft", text: ` (next try: ${Words.lately(next)})` }) : null) : null,
      Orders.row(order));
  }
  // Orders stand out, so that they can be copied.
  function withOrder(text) {
    return text.split(/(batchd (?:resume|retry|tune)[^,;]*)/).map((part, i) => (i % 2 ? el("code", { class: "order", text: part.trim() }) : part));
  }
  function failed(error) {
    lost.hidden = true;
    document.body.removeAttribute("data-lost");
    Keep.list(notices, [{ key: "error", tone: "error", title: "This cannot be shown", text: error.message }], n => n.key, notice);
  }
  return { begin, update, connected, failed };
})();
