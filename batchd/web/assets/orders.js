// Orders, where this server takes any: a question first, then a yes, then what the daemon says to it.
const Orders = (() => {
  const { el } = Dom;
  // Beside the session's cookie: other servers on this host are sent that, and cannot read this.
  const KEY = "batchd-key";
  const verbs = (document.body.dataset.orders || "").split(" ");
  const may = verb => verbs.includes(verb);
  const dialog = el("dialog", { class: "ask", "aria-labelledby": "ask-title" });
  if (document.body.dataset.orders) document.body.append(dialog);

  // A file is sent as it is, with its order in a header, which holds ASCII alone.
  async function post(address, order, file) {
    const text = JSON.stringify(order), key = { "X-Batchd-Key": localStorage.getItem(KEY) || "" };
    const escaped = () => text.replace(/[^\x20-\x7e]/g, c => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
    const headers = file ? { ...key, "Content-Type": "application/octet-stream", "X-Batchd-Order": escaped() } : { ...key, "Content-Type": "application/json" };
    const answer = await fetch(address, { method: "POST", headers, body: file || text, cache: "no-store" });
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
  async function ask(title, given, file) {
    wanted = [title, given, file];
    try {
      const { question, claim, models } = await post("/api/orders", given);
      const yes = button(title, () => give(title, { ...given, claim }, file), { "data-yes": true });
      show(title, el("p", { text: question }), models.length ? choice(title, given, models) : "", el("div", { class: "buttons" }, button("No", close, { autofocus: true }), yes));
      if (given.model !== undefined) document.getElementById("ask-model").focus();
    } catch (error) { failed(title, error); }
  }
  // What is chosen changes the order, so it is asked for once more.
  function choice(title, given, models) {
    const option = (value, text) => el("option", { value, text, selected: (given.model || "") === value });
    const select = el("select", { id: "ask-model", onchange: () => ask(title, { ...given, model: select.value }) }, option("", "the same as before"), models.map(name => option(name, name)));
    return el("p", { class: "choice" }, el("label", { for: "ask-model", text: "Model" }), select);
  }
  async function give(title, given, file) {
    show(title, el("p", { class: "soft", role: "status", text: file ? "The file is sent …" : "The daemon is asked …" }));
    try {
      const { lines, batches } = await post("/api/orders/confirmed", given, file);
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
  function row(orders) {
    const allowed = orders.filter(([, given]) => may(given.verb));
    return allowed.length ? el("div", { class: "order-row", role: "group", "aria-label": "Orders" }, allowed.map(([text, given]) => button(text, () => ask(text, given), { "data-order": given.verb }))) : el("div", { hidden: true });
  }
  // What can be done with a patch: a button where this page may, else the command.
  function patch({ task, sha256, command, ours }) {
    const order = { verb: "apply", scope: "task", name: task, sha256 };
    return ours && may("apply") ? row([["Accept: commit it on a branch", order]]) : el("p", { class: "accept" }, el("span", { class: "soft", text: "To accept it: " }), el("code", { text: command }));
  }
  return { may, row, ask, show, patch };
})();
