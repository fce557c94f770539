// Orders, where this server takes any: a question first, then a yes, then what the daemon says to it.
const Orders = (() => {
  const { el } = Dom;
  // Beside the session's cookie: other servers on this host are sent that, and cannot read this.
  const KEY = "batchd-key";
  const on = document.body.hasAttribute("data-orders");
  const dialog = el("dialog", { class: "ask", "aria-labelledby": "ask-title" });
  if (on) document.body.append(dialog);

  async function post(address, body) {
    const headers = { "Content-Type": "application/json", "X-Batchd-Key": localStorage.getItem(KEY) || "" };
    const answer = await fetch(address, { method: "POST", headers, body: JSON.stringify(body), cache: "no-store" });
    const data = await answer.json();
    if (answer.status === 401) location.reload();
    if (!answer.ok) throw Object.assign(new Error(data.error), { key: data.key });
    return data;
  }
  const button = (text, act, more = {}) => el("button", { class: "plain-button", type: "button", text, onclick: act, ...more });
  function show(title, ...inside) {
    dialog.replaceChildren(el("h2", { id: "ask-title", tabindex: "-1", text: title }), ...inside);
    if (!dialog.open) dialog.showModal();
  }
  const close = () => dialog.close();
  function failed(title, error) {
    if (error.key) { sign(title); return; }
    show(title, el("p", { class: "wrong", role: "alert", text: error.message }), el("div", { class: "buttons" }, button("Close", close, { autofocus: true })));
  }
  let wanted = null;
  async function ask(title, given) {
    wanted = [title, given];
    try {
      const { question, claim } = await post("/api/orders", given);
      const yes = button(title, () => give(title, { ...given, claim }), { "data-yes": true });
      show(title, el("p", { text: question }), el("div", { class: "buttons" }, button("No", close, { autofocus: true }), yes));
    } catch (error) { failed(title, error); }
  }
  async function give(title, given) {
    show(title, el("p", { class: "soft", role: "status", text: "The daemon is asked …" }));
    try {
      const { lines, batches } = await post("/api/orders/confirmed", given);
      show(title, el("div", { role: "status" }, lines.map(text => el("p", { text }))),
        el("div", { class: "buttons" }, batches.map(name => el("a", { href: `/batches/${encodeURIComponent(name)}`, text: name })), button("Close", close, { autofocus: true })));
    } catch (error) { failed(title, error); }
  }
  // A browser that signed in before orders were allowed has no key: the token is shown once more.
  function sign(title) {
    const token = el("input", { type: "password", id: "ask-token", autocomplete: "current-password", spellcheck: "false", required: true }), said = el("p", { class: "wrong", role: "alert" });
    const form = el("form", { method: "dialog" }, el("label", { for: "ask-token", text: "Orders need the token" }), token, said, el("div", { class: "buttons" }, button("No", close), el("button", { class: "plain-button", type: "submit", text: "Go on" })));
    form.addEventListener("submit", async event => {
      event.preventDefault();
      const answer = await fetch("/session", { headers: { Authorization: `Bearer ${token.value.trim()}` }, cache: "no-store" });
      if (!answer.ok) { said.textContent = "This is not the token."; token.select(); return; }
      localStorage.setItem(KEY, (await answer.json()).key);
      ask(...wanted);
    });
    show(title, form);
    token.focus();
  }
  // A row of buttons: each is [what stands on it, the order]; nothing where none may be given.
  const row = orders => (on && orders.length ? el("div", { class: "order-row", role: "group", "aria-label": "Orders" }, orders.map(([text, given]) => button(text, () => ask(text, given), { "data-order": given.verb }))) : el("div", { hidden: true }));
  return { on, row };
})();
