"use strict";
// Tables sort by the column whose name is pressed; what has no number stays last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const column = [...head.parentNode.children].indexOf(head);
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = row => parseFloat(row.children[column].dataset.value);
    const order = (a, b) => isNaN(key(a)) - isNaN(key(b)) || (falling ? key(b) - key(a) : key(a) - key(b)) || 0;
    body.append(...[...body.rows].sort(order));
  });
}
// What a pointer or the keyboard is on is told below the picture too, for fingers and for those who see no tooltip.
for (const figure of document.querySelectorAll("figure")) {
  const told = figure.querySelector(".tip");
  if (!told) continue;
  const tell = event => {
    const part = event.target.closest("[data-tip]") || event.target.querySelector("[data-tip]");
    if (part && event.target.closest("svg *")) told.textContent = part.dataset.tip;
  };
  figure.addEventListener("pointerover", tell);
  figure.addEventListener("focusin", tell);
}
