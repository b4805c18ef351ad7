"use strict";
// The graph is drawn by the server; this zooms it: buttons, + - 0, and Ctrl with the wheel. Scrolling and touch move it.
const frame = document.querySelector(".map");
const drawing = frame.querySelector("svg");
const full = Number(drawing.dataset.width);
const fit = () => Math.min(1, frame.clientWidth / full);
let scale = Math.max(fit(), 0.6);

function show(next, x = frame.clientWidth / 2, y = frame.clientHeight / 2) {
  const before = scale;
  scale = Math.max(0.15, Math.min(4, next));
  drawing.setAttribute("width", full * scale);
  drawing.setAttribute("height", drawing.viewBox.baseVal.height * scale);
  frame.scrollLeft = (frame.scrollLeft + x) * scale / before - x;
  frame.scrollTop = (frame.scrollTop + y) * scale / before - y;
}

const asked = by => show(by === "fit" ? fit() : scale * Number(by));
document.querySelector(".zoom").addEventListener("click", event => {
  const by = event.target.closest("button")?.dataset.zoom;
  if (by) asked(by);
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const by = { "+": "1.25", "=": "1.25", "-": "0.8", "0": "fit" }[event.key];
  if (by) { event.preventDefault(); asked(by); }
});
frame.addEventListener("keydown", event => { if (event.key.startsWith("Arrow")) event.stopPropagation(); }); // they scroll
frame.addEventListener("wheel", event => {
  if (!event.ctrlKey) return;
  event.preventDefault();
  const box = frame.getBoundingClientRect();
  show(scale * Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
}, { passive: false });
show(scale);
const centre = drawing.querySelector(".centre rect").getBoundingClientRect();
const box = frame.getBoundingClientRect();
frame.scrollLeft += centre.left + centre.width / 2 - box.left - box.width / 2;
frame.scrollTop += centre.top + centre.height / 2 - box.top - box.height / 2;
