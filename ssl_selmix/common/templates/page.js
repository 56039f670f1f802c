"use strict";
// Tables are sorted by a click on a title; what is dotted says more where the pointer is.
for (const table of document.querySelectorAll("table.sort")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  const number = (text) => {
    const found = text.replace("\u2212", "-").match(/[+-]?\d[\d,]*(\.\d+)?/);
    return found ? parseFloat(found[0].replaceAll(",", "")) : NaN;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const falls = head.classList.contains("word")
        ? head.getAttribute("aria-sort") === "ascending"
        : head.getAttribute("aria-sort") !== "descending";
      const key = (row) => row.cells[column].textContent.trim();
      const order = (a, b) => {
        if (head.classList.contains("word")) {
          return key(a).localeCompare(key(b), "en", { numeric: true });
        }
        return number(key(a)) - number(key(b));
      };
      const known = (row) => head.classList.contains("word") || !Number.isNaN(number(key(row)));
      const rows = [...body.rows];
      const sorted = rows.filter(known).sort((a, b) => (falls ? order(b, a) : order(a, b)));
      body.replaceChildren(...sorted, ...rows.filter((row) => !known(row)));
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    });
  });
}
const hint = document.getElementById("hint");
const show = (event) => {
  const cell = event.target.closest?.("[data-hint]");
  hint.hidden = !cell;
  if (!cell) return;
  hint.textContent = cell.dataset.hint;
  const place = cell.getBoundingClientRect();
  const left = Math.min(place.left, document.documentElement.clientWidth - hint.offsetWidth - 8);
  const below = place.bottom + 6;
  const fits = below + hint.offsetHeight < window.innerHeight;
  hint.style.left = `${Math.max(8, left)}px`;
  hint.style.top = `${fits ? below : place.top - hint.offsetHeight - 6}px`;
};
for (const kind of ["mouseover", "click"]) document.addEventListener(kind, show);
document.addEventListener("scroll", () => { hint.hidden = true; }, true);
