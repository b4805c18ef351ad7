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

// A command to copy. Pages that were opened from a disk may have no clipboard.
for (const button of navigator.clipboard ? document.querySelectorAll("[data-copy]") : []) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
    button.textContent = "Copied";
  });
}

// What a page sends: JSON to its own server. The answer, or an Error with the server's line.
async function send(url, content) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(url, { method: "POST", headers, body: JSON.stringify(content) })
    .catch(() => { throw new Error("the server does not answer: is make browse still running?"); });
  const told = await answer.json().catch(() => ({ error: `the server failed (${answer.status})` }));
  if (!answer.ok) throw new Error(told.error);
  return told;
}

// Star, name and note: only the fields that changed here are sent, so that other windows keep theirs.
const note = document.querySelector("form#note");
if (note) {
  const star = document.querySelector("button.star");
  const status = note.querySelector("output");
  const texts = [note.elements.name, note.elements.note];
  async function change(fields) {
    status.textContent = "";
    try {
      const saved = await send(note.action, fields);
      star.setAttribute("aria-pressed", saved.star);
      document.querySelector("#name").textContent = saved.name;
      for (const text of texts) {
        if (text.name in fields || text.value === text.defaultValue) text.value = saved[text.name];
        text.defaultValue = saved[text.name];
      }
      status.textContent = "saved";
    } catch (error) {
      note.closest("details").open = true;
      status.textContent = error.message;
    }
  }
  star.addEventListener("click", () => change({ star: star.getAttribute("aria-pressed") !== "true" }));
  note.addEventListener("submit", event => {
    event.preventDefault();
    change(Object.fromEntries(texts.filter(text => text.value !== text.defaultValue).map(text => [text.name, text.value])));
  });
}

// A text of one's own: the server runs the model on it.
const text = document.querySelector("form#text");
text?.addEventListener("submit", async event => {
  event.preventDefault();
  const status = text.querySelector("output");
  const button = text.querySelector("button");
  status.textContent = "running the model; at the first text it is loaded, which takes a while";
  button.disabled = true;
  try {
    const told = await send(text.action, { text: text.elements.text.value });
    document.querySelector("#read").innerHTML = told.html;
    status.textContent = "";
  } catch (error) {
    status.textContent = error.message;
  }
  button.disabled = false;
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
    text: [row.dataset.given ?? "", ...[1, 2].map(i => row.cells[i].textContent)].join("\n"),
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
    const marked = form?.elements.marked?.value;
    const isMarked = { star: row => "star" in row.dataset, any: row => "given" in row.dataset }[marked] ?? (() => true);
    const matches = ({ text, values }) => !words || pattern.test(text) || String(values[0]) === words;
    const shown = all.filter(each => matches(each) && recurs(each) && isMarked(each.row) && (!prefix || each.values.at(-1) === prefix));
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
