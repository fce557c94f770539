"use strict";
// How numbers, money, spans of time and moments are told.
const Words = (() => {
  const MARKS = { completed: "✓", timeout: "◷", error: "✗", cancelled: "○", running: "▸", parked: "‖", queued: "·" };
  const NAMES = { error: "failed", timeout: "ran out of a limit", completed: "completed", cancelled: "cancelled", running: "running", parked: "parked", queued: "queued" };
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
  function duration(seconds) {
    if (seconds === null || seconds === undefined) return "";
    if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
    const whole = Math.round(seconds), two = n => String(n).padStart(2, "0");
    const h = Math.floor(whole / 3600), m = Math.floor(whole / 60) % 60;
    return h ? `${count(h)} h ${two(m)} min` : `${m} min ${two(whole % 60)} s`;
  }
  // How long something will take, as nobody knows it better.
  function rough(seconds) {
    if (seconds < 90) return `${Math.max(5, Math.round(seconds / 5) * 5)} s`;
    if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
    return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
  }
  const at = (seconds, how) => (seconds ? how.format(new Date(seconds * 1000)) : "");
  // A moment as short as it can be told.
  function lately(seconds) {
    const then = new Date(seconds * 1000);
    return seconds ? (then.toDateString() === new Date().toDateString() ? clock : date).format(then) : "";
  }
  const percent = part => (part === 1 ? "100 %" : `${(Math.floor(part * 1000) / 10).toFixed(1)} %`);

  return {
    MARKS, NAMES, count, counted, compact, money, atLeast, duration, rough, lately, percent,
    clock: s => at(s, clock), minute: s => at(s, minute), day: s => at(s, day),
    zone: () => Intl.DateTimeFormat().resolvedOptions().timeZone || "local time",
    reason: r => r.replaceAll("_", " "),
  };
})();
