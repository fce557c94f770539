// The search in what the tasks of a batch were asked, said, ran and printed: the server looks a moment at a time.
const Search = (() => {
  const { el } = Dom;
  const SHOWN = 100;

  function box(batch) {
    const input = el("input", { type: "search", maxlength: "200", placeholder: "Search prompts, answers, commands and outputs", "aria-label": "Search in all tasks", autocomplete: "off", spellcheck: "false" });
    const list = el("ol", { class: "hits" }), said = el("p", { class: "soft", role: "status" });
    const more = el("button", { class: "plain-button", type: "button", hidden: true, text: "Show more" });
    let asked = 0, typing = 0;

    input.addEventListener("input", () => {
      asked += 1; // what is under way ends
      clearTimeout(typing);
      typing = setTimeout(() => {
        list.replaceChildren();
        said.textContent = "";
        more.hidden = true;
        if (input.value.trim()) look(input.value, 0);
      }, 250);
    });
    async function look(text, from) {
      const mine = ++asked, most = list.children.length + SHOWN;
      let next = from;
      said.textContent = "Searching …";
      try {
        do {
          const found = await Live.get(`/api/search?batch=${encodeURIComponent(batch)}&q=${encodeURIComponent(text)}&from=${next}`);
          if (mine !== asked) return;
          list.append(...found.hits.map(line));
          next = found.next;
        } while (next && list.children.length < most);
        const count = list.children.length;
        said.textContent = count ? `Found in ${Words.counted(count, "place")}${next ? " so far" : ""}` : "Nothing is found.";
      } catch (error) { if (mine === asked) said.textContent = error.message || String(error); return; }
      more.hidden = !next;
      more.onclick = () => look(text, next);
    }
    const line = h => el("li", {},
      el("a", { href: `/batches/${encodeURIComponent(h.batch)}/${encodeURIComponent(h.task)}`, text: h.task }), el("span", { class: "soft", text: `${h.turn ? ` · turn ${h.turn}` : ""} · ${h.where}` }),
      el("p", {}, el("span", { text: h.before }), el("mark", { text: h.hit }), el("span", { text: h.after })));
    return el("section", { id: "find", hidden: true, "aria-label": "Search" }, input, said, list, more);
  }
  return { box };
})();
