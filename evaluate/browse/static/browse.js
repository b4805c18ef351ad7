"use strict";
// Keys: / search, j and k through the rows, Enter opens, arrows to the previous and next page or feature.
const rows = () => [...document.querySelectorAll("#features tbody tr, table.cards tbody tr, .tree > li")];
let here = -1;

function move(step) {
  const all = rows();
  if (!all.length) return;
  all[here]?.classList.remove("here");
  here = Math.max(0, Math.min(all.length - 1, here + step));
  all[here].classList.add("here");
  all[here].querySelector("a[href]")?.focus({ preventScroll: true }); // Enter opens what has the focus
  all[here].scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", event => {
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const follow = relation => document.querySelector(`a[rel=${relation}]`)?.click();
  const actions = {
    "/": () => document.querySelector("input[type=search]")?.focus(), j: () => move(1), k: () => move(-1),
    ArrowLeft: () => follow("prev"), ArrowRight: () => follow("next"),
  };
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});

// A static site has no server to sort and search: its tables are sorted, and its features searched, in the page.
const table = document.querySelector("thead button")?.closest("table");
if (table) {
  const form = document.querySelector("form.search"), count = document.querySelector("#count"), said = count?.textContent;
  const read = cell => {
    const text = cell.title || cell.textContent.trim(), number = Number(text.replace(/[,%#]/g, "") || NaN);
    return Number.isNaN(number) ? text : number;
  };
  const all = [...table.tBodies[0].rows].map(row => ({
    row, values: [...row.cells].map(read), text: [1, 2].map(i => row.cells[i].textContent).join("\n").toLowerCase(),
  }));
  const before = (a, b) => typeof a === typeof b ? a < b : typeof a === "number";
  let by = table.tHead.querySelector("[aria-sort]"), down = false;
  function draw() {
    const words = form?.elements.q.value.trim().toLowerCase(), prefix = Number(form?.elements.prefix.value);
    const found = all.filter(({ text, values }) => (!words || text.includes(words) || String(values[0]) === words) && (!prefix || values.at(-1) === prefix));
    const value = each => each.values[by.cellIndex];
    found.sort((a, b) => (before(value(a), value(b)) ? -1 : before(value(b), value(a)) ? 1 : 0) * (down ? -1 : 1));
    table.tBodies[0].replaceChildren(...found.map(each => each.row));
    if (count) count.textContent = found.length === all.length ? said : `${found.length.toLocaleString("en")} feature${found.length === 1 ? "" : "s"}`;
  }
  form?.addEventListener("submit", event => { event.preventDefault(); draw(); });
  form?.addEventListener("input", draw);
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("button")?.parentElement;
    if (!head) return;
    down = head === by ? !down : "down" in event.target.dataset;
    by.removeAttribute("aria-sort");
    by = head;
    by.setAttribute("aria-sort", down ? "descending" : "ascending");
    draw();
  });
}
