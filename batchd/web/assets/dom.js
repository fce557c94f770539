// Elements from texts. Everything that models, files or users wrote goes in as text, never as markup.
const Dom = (() => {
  function el(tag, given = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name === "text") made.textContent = typeof value === "string" ? readable(value) : value;
      else made.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
    }
    made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ""));
    return made;
  }
  // Of what steers a terminal, or turns text around: colours go, line ends are line ends, all else is shown as what it is.
  const STEERS = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g;
  const hex = c => (c < "\u0100" ? `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}` : `\\u${c.charCodeAt(0).toString(16)}`);
  const readable = text => text.replace(/\r\n?/g, "\n").replace(/\x1b\[[\d;]*[mK]/g, "").replace(STEERS, hex);
  // A name of several parts, broken between them where a line has no room for all.
  const name = text => readable(text).split(/(?<=\/)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));
  const status = (name, text) => el("span", { class: "status", "data-status": name, "data-mark": Words.MARKS[name], text: text || name });
  // A share of a bar, its width a fraction of the whole.
  function fill(colour, fraction) {
    const made = el("span", { class: "bar-fill", "data-fill": colour });
    made.style.width = `${Math.max(0, Math.min(1, fraction)) * 100}%`;
    return made;
  }
  // Markdown that was read already: elements of a closed list, with texts in them.
  const TAGS = new Set(["p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "hr", "br", "strong", "em", "s", "code", "pre", "a", "table", "thead", "tbody", "tr", "th", "td"]);
  const tree = nodes => nodes.map(node => {
    if (typeof node === "string") return readable(node);
    if (!TAGS.has(node.tag)) return el("span", {}, tree(node.in));
    const href = node.tag === "a" && /^https?:\/\//.test(node.href || "") ? node.href : null;
    return el(node.tag, { href, rel: href && "noopener noreferrer", target: href && "_blank", start: node.start }, tree(node.in));
  });
  // A text as Markdown where it was read as such, else as it is.
  const prose = (text, nodes, name = "said") => (nodes ? el("div", { class: `${name} prose` }, tree(nodes)) : el("div", { class: name, text }));
  const say = text => { document.getElementById("said").textContent = text; };
  return { el, name, status, fill, say, prose };
})();
