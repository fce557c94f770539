"use strict";
// How numbers, money, spans of time and moments are shown.
const Words = (() => {
  const MARKS = { completed: "✓", timeout: "◷", error: "✗", cancelled: "○", running: "▸", parked: "‖", queued: "·" };
  const NAMES = { error: "failed", timeout: "not accepted or over a limit", completed: "completed", cancelled: "cancelled", running: "running", parked: "waiting", queued: "queued" };
  const plain = new Intl.NumberFormat("en-US");
  const short = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });
  const cents = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD" });
  const parts = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", minimumFractionDigits: 4 });
  const tiny = new Intl.NumberFormat("en-US", { style: "currency", currency: "USD", maximumSignificantDigits: 2 });
  const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
  const day = new Intl.DateTimeFormat("en-GB", { weekday: "short", day: "numeric", month: "short", year: "numeric" });

  const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });

  const count = n => plain.format(n);
  const counted = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
  const compact = n => (n < 10000 ? count(n) : short.format(n));

  function money(usd) {
    if (usd === null || usd === undefined) return "unknown";
    if (usd === 0) return "$0";
    return usd >= 1 ? cents.format(usd) : usd >= 0.0001 ? parts.format(usd) : tiny.format(usd);
  }
  // Where the price of a part is missing: what the rest came to.
  const atLeast = (usd, known) => (usd === null && known ? `> ${money(known)}` : money(usd));
  // Of what counts as spent, what calls without an answer on record may have cost.
  const unsettled = usd => (usd > 0 ? `at most ${money(usd)} of it unsettled` : "");
  // Spans of time read as words.py writes them.
  const MINUTE = 60, HOUR = 3600, DAY = 86400;
  function duration(seconds) {
    if (seconds === null || seconds === undefined) return "";
    const tenths = Math.floor(seconds * 10 + 0.5);
    return tenths < 100 ? `${(tenths / 10).toFixed(1)} s` : span(Math.floor(seconds + 0.5));
  }
  // How long something has gone on, in whole seconds.
  function span(seconds) {
    const whole = Math.floor(seconds), hours = Math.floor(whole / HOUR), two = n => String(n).padStart(2, "0");
    if (whole < MINUTE) return `${whole} s`;
    if (whole < HOUR) return `${Math.floor(whole / MINUTE)}:${two(whole % MINUTE)} min`;
    if (whole < 2 * DAY) return `${hours}:${two(Math.floor((whole % HOUR) / MINUTE))} h`;
    return `${Math.floor(hours / 24)} d ${hours % 24} h`;
  }
  // How long something will take, which is not known to the second.
  function rough(seconds) {
    const found = [[DAY, "d"], [HOUR, "h"], [MINUTE, "min"]].find(([unit]) => seconds >= 1.5 * unit);
    return found ? `${Math.floor(seconds / found[0] + 0.5)} ${found[1]}` : `${Math.max(5, 5 * Math.floor(seconds / 5 + 0.5))} s`;
  }
  // How a task ended, or how it stands: what is stored as "timeout, max_iterations" is a check that never passed.
  const LIMITS = { max_calls: "out of calls", tokens: "out of tokens", budget: "out of money", wall_clock: "out of time" };
  const ENDS = { user: "cancelled", dependency: "cancelled, with what it comes after" };
  const reason = r => r.replaceAll("_", " ");
  function outcome(status, why, rounds) {
    if (why === "max_iterations") return rounds ? `not accepted after ${counted(rounds, "round")}` : "not accepted";
    if (!why) return NAMES[status] || status;
    return LIMITS[why] || (status === "cancelled" && ENDS[why]) || (status === "error" ? `failed: ${reason(why)}` : `${NAMES[status] || status}: ${reason(why)}`);
  }
  // What is said beside that: without the reason, and how many rounds it had.
  function detail(why, text) {
    const rest = why && text.startsWith(`${why}: `) ? text.slice(why.length + 2) : text === why ? "" : text;
    return why === "max_iterations" ? rest.replace(/^(?:not done )?after [\d,]+ rounds?(?:: |$)/, "") : rest;
  }
  // What is known of some money, and apart from it what is not: both in words, empty where there is nothing to say.
  function uncertain({ usd, unpriced_calls: unpriced = 0, unsettled_calls: open = 0, unsettled_usd: most = 0 }) {
    return [unpriced ? `+ ${counted(unpriced, "call")} without a price` : usd === null ? "+ calls without a price" : "", open ? (most > 0 ? `+ at most ${money(most)}` : `+ ${counted(open, "call")} unsettled`) : ""].filter(Boolean).join(", ");
  }
  const at = (seconds, how) => (seconds ? how.format(new Date(seconds * 1000)) : "");
  // A moment, as short as it can be.
  function lately(seconds) {
    const then = new Date(seconds * 1000);
    return seconds ? (then.toDateString() === new Date().toDateString() ? clock : date).format(then) : "";
  }
  const percent = part => (part === 1 ? "100 %" : `${(Math.floor(part * 1000) / 10).toFixed(1)} %`);

  return {
    MARKS, NAMES, outcome, detail, uncertain, count, counted, compact, money, atLeast, unsettled, duration, span, rough, lately, percent,
    clock: s => at(s, clock), minute: s => at(s, minute), day: s => at(s, day),
    zone: () => Intl.DateTimeFormat().resolvedOptions().timeZone || "local time",
    reason,
  };
})();
