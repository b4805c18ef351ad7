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
  all[here].scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", event => {
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const follow = relation => document.querySelector(`a[rel=${relation}]`)?.click();
  const actions = {
    "/": () => document.querySelector("input[type=search]")?.focus(), j: () => move(1), k: () => move(-1),
    Enter: () => rows()[here]?.querySelector("a[href]")?.click(),
    ArrowLeft: () => follow("prev"), ArrowRight: () => follow("next"),
  };
  if (event.key === "Enter" && (here < 0 || event.target !== document.body)) return;
  if (actions[event.key]) { event.preventDefault(); actions[event.key](); }
});

// A static site has no server to sort and search: its table comes as one file. Columns are those of SORTS, then an example.
const table = document.querySelector("#features[data-index]");
if (table) fetch(table.dataset.index).then(answer => answer.json()).then(index => {
  const columns = ["feature", "prefix", "density", "mean_activation", "max_activation", "max_cosine", "top_token"];
  const form = document.querySelector("form.search"), query = form.elements.q, prefix = form.elements.prefix;
  let by = 0, down = false;
  const cell = (text, name) => { const td = document.createElement(name || "td"); td.textContent = text; return td; };
  const number = value => Number(value.toPrecision(3)).toString();
  function draw() {
    const words = query.value.toLowerCase();
    const found = index.filter(f => (!words || f[7].toLowerCase().includes(words) || String(f[0]) === words) && (!prefix.value || f[1] === Number(prefix.value)));
    found.sort((a, b) => (a[by] < b[by] ? -1 : a[by] > b[by] ? 1 : 0) * (down ? -1 : 1));
    document.querySelector("#count").textContent = `${found.length.toLocaleString()} features`;
    table.tBodies[0].replaceChildren(...found.slice(0, 200).map(f => {
      const row = document.createElement("tr"), head = cell("", "th"), link = document.createElement("a"), example = cell(f[7]);
      link.href = table.dataset.link.replace(/0\.html$/, `${f[0]}.html`);
      link.textContent = `#${f[0]}`;
      head.append(link);
      example.className = "wide";
      row.append(head, cell(f[6]), example, cell(number(f[2])), cell(number(f[4])), cell(number(f[3])), cell(f[5].toFixed(2)), cell(f[1]));
      return row;
    }));
  }
  form.addEventListener("submit", event => { event.preventDefault(); draw(); });
  query.addEventListener("input", draw);
  prefix.addEventListener("change", draw);
  table.tHead.addEventListener("click", event => {
    const name = event.target.dataset.sort;
    if (!name) return;
    const column = columns.indexOf(name);
    down = column === by ? !down : column > 1 && column < 6;
    by = column;
    draw();
  });
});
