// Elements from texts. Everything that models, files or users wrote goes in as text, never as markup.
const Dom = (() => {
  function el(tag, given = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(given)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name === "text") made.textContent = value;
      else made.setAttribute(name === "className" ? "class" : name, value === true ? "" : value);
    }
    made.append(...children.flat().filter(child => child !== null && child !== undefined && child !== ""));
    return made;
  }
  const status = (name, text) => el("span", { class: "status", "data-status": name, "data-mark": Words.MARKS[name], text: text || name });
  // A share of a bar, its width a fraction of the whole.
  function fill(colour, fraction) {
    const made = el("span", { class: "bar-fill", "data-fill": colour });
    made.style.width = `${Math.max(0, Math.min(1, fraction)) * 100}%`;
    return made;
  }
  const say = text => { document.getElementById("said").textContent = text; };
  return { el, status, fill, say };
})();
