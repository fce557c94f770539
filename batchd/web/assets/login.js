"use strict";
// Shows the token once, in a header; what keeps the browser signed in is a cookie that scripts cannot read.
(() => {
  const form = document.getElementById("form"), token = document.getElementById("token"), said = document.getElementById("said");

  async function show(word) {
    const headers = word ? { Authorization: `Bearer ${word}` } : {};
    const answer = await fetch("/session", { headers, cache: "no-store" });
    const { admitted, key } = answer.ok ? await answer.json() : {};
    // Where orders are allowed: what they want beside the cookie.
    if (key) localStorage.setItem("batchd-key", key);
    return admitted;
  }
  // The address without the code, which is used up.
  const enter = () => location.replace(location.pathname + location.search);

  async function begin() {
    const code = location.hash.slice(1);
    if (code) history.replaceState(null, "", location.pathname + location.search);
    // Who came by a link on another page has a cookie that was not sent.
    if (await show(code && /^[\w-]{20,}$/.test(code) ? code : "")) enter();
    else if (code) said.textContent = "This address has been used, or is older than ten minutes. The token lets you in.";
  }
  form.addEventListener("submit", async event => {
    event.preventDefault();
    said.textContent = "";
    try {
      if (await show(token.value.trim())) enter();
      else said.textContent = "This is not the token.";
    } catch (error) {
      said.textContent = error.message;
    }
    token.select();
  });
  begin().catch(error => { said.textContent = error.message; });
  token.focus();
})();
