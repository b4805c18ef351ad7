"use strict";
// Keys: / focuses the search, j and k move through the rows, Enter opens a row, arrows go to the previous and next page or feature.
const rows = () => [...document.querySelectorAll("#features tbody tr, table.cards tbody tr, .tree > li")];
let current = -1;

function move(step) {
  const all = rows();
  if (!all.length) return;
  all[current]?.classList.remove("here");
  current = Math.max(0, Math.min(all.length - 1, current + step));
  all[current].classList.add("here");
  all[current].querySelector("a[href]")?.focus({ preventScroll: true }); // Enter opens the link that has the focus
  all[current].scrollIntoView({ block: "nearest" });
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

// Upper and lower case are alike, letter by letter, and accents are not: as in the server's search.
function patternOf(words) {
  return new RegExp(words.replace(/[\\^$.*+?()[\]{}|\/]/g, "\\$&"), "iu");
}

// A static site has no server: the page itself sorts its tables and searches its features.
const table = document.querySelector("thead button")?.closest("table");
if (table) {
  const form = document.querySelector("form.search");
  const count = document.querySelector("#count");
  const countOfAll = count?.textContent;
  const read = cell => {
    const text = cell.title || cell.textContent.trim();
    const number = Number(text.replace(/[,%#]/g, "") || NaN);
    return Number.isNaN(number) ? text : number;
  };
  const all = [...table.tBodies[0].rows].map(row => ({
    row,
    values: [...row.cells].map(read),
    text: [1, 2].map(i => row.cells[i].textContent).join("\n"),
  }));
  const before = (a, b) => typeof a === typeof b ? a < b : typeof a === "number";
  let by = table.tHead.querySelector("[aria-sort]");
  let down = false;
  function draw() {
    const words = form?.elements.q.value.trim();
    const pattern = patternOf(words ?? "");
    const prefix = Number(form?.elements.prefix.value);
    const stable = Number(form?.elements.stable?.value);
    const recurs = ({ values }) => !stable || values.at(-2) >= stable;
    const matches = ({ text, values }) => !words || pattern.test(text) || String(values[0]) === words;
    const shown = all.filter(each => matches(each) && recurs(each) && (!prefix || each.values.at(-1) === prefix));
    const value = each => each.values[by.cellIndex];
    shown.sort((a, b) => (before(value(a), value(b)) ? -1 : before(value(b), value(a)) ? 1 : 0) * (down ? -1 : 1));
    table.tBodies[0].replaceChildren(...shown.map(each => each.row));
    const countOfShown = `${shown.length.toLocaleString("en")} feature${shown.length === 1 ? "" : "s"}`;
    if (count) count.textContent = shown.length === all.length ? countOfAll : countOfShown;
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
