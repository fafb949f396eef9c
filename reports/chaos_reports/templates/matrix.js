const rows = [...document.querySelectorAll(".grid tbody tr")];
const bar = document.querySelector(".filters");
const search = document.getElementById("search");
const fault = document.getElementById("fault");
const order = document.getElementById("order");
const detailsOf = new Map([...document.querySelectorAll("details[data-row]")].map((each) => [each.dataset.row, each]));
const all = new Map();
for (const each of document.querySelectorAll("[data-row]")) {
  const name = each.dataset.row;
  if (name) all.set(name, [...(all.get(name) || []), each]);
}
let chosen = -1;
let isQuiet = false;

function wanted() {
  return new Set([...document.querySelectorAll("[data-verdict][aria-pressed=true]")].map((each) => each.dataset.verdict));
}

const texts = new Map();

function textOf(row) {
  if (!texts.has(row)) {
    const details = detailsOf.get(row.dataset.row);
    texts.set(row, `${row.dataset.text} ${row.dataset.faults} ${details ? details.textContent : ""}`.toLowerCase());
  }
  return texts.get(row);
}

function filter() {
  const verdicts = wanted();
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let count = 0;
  for (const row of rows) {
    const text = words.length ? textOf(row) : "";
    const isShown = (!verdicts.size || verdicts.has(row.dataset.verdict))
      && (!fault.value || row.dataset.faults.split("|").includes(fault.value))
      && words.every((word) => text.includes(word));
    for (const each of row.dataset.row ? all.get(row.dataset.row) : [row]) each.hidden = !isShown;
    count += isShown;
  }
  document.getElementById("shown").textContent = `${count} of ${rows.length} shown`;
  remember(verdicts);
}

function remember(verdicts) {
  if (isQuiet) return;
  const state = new URLSearchParams();
  if (search.value) state.set("q", search.value);
  if (verdicts.size) state.set("verdict", [...verdicts].join(","));
  if (fault.value) state.set("fault", fault.value);
  if (order.value) state.set("order", order.value);
  const text = String(state);
  history.replaceState(null, "", text ? `#?${text}` : location.pathname);
}

const places = new Map(rows.map((row, place) => [row, place]));

function sort() {
  const figure = (row, name) => {
    const details = detailsOf.get(row.dataset.row);
    return details ? Number(details.dataset[name]) : Infinity;
  };
  const by = {
    id: (a, b) => a.dataset.text.localeCompare(b.dataset.text, "en", { numeric: true }),
    duration: (a, b) => figure(b, "duration") - figure(a, "duration"),
    rate: (a, b) => figure(a, "rate") - figure(b, "rate"),
  }[order.value] || ((a, b) => places.get(a) - places.get(b));
  rows.sort((a, b) => by(a, b) || places.get(a) - places.get(b));
  for (const row of rows) {
    for (const each of row.dataset.row ? all.get(row.dataset.row) : [row]) {
      if (each.matches("details")) each.parentNode.insertBefore(each, document.querySelector("main > .columns"));
      else each.parentNode.append(each);
    }
  }
}

function choose(step) {
  const shown = rows.filter((row) => !row.hidden);
  if (!shown.length) return;
  rows.forEach((row) => row.classList.remove("chosen"));
  chosen = Math.min(Math.max(chosen + step, 0), shown.length - 1);
  shown[chosen].classList.add("chosen");
  shown[chosen].scrollIntoView({ block: "nearest" });
}

function open(name) {
  const details = detailsOf.get(name);
  if (!details) return;
  details.open = true;
  details.scrollIntoView();
}

function restore() {
  let text = location.hash.slice(1);
  try { text = decodeURIComponent(text); } catch { /* no encoded name: it names nothing, or itself */ }
  if (!text.startsWith("?")) {
    open(text);
    return;
  }
  const state = new URLSearchParams(location.hash.slice(2));
  isQuiet = true;
  search.value = state.get("q") || "";
  fault.value = state.get("fault") || "";
  order.value = state.get("order") || "";
  const verdicts = (state.get("verdict") || "").split(",");
  for (const each of document.querySelectorAll("button[data-verdict]")) {
    each.setAttribute("aria-pressed", String(verdicts.includes(each.dataset.verdict)));
  }
  sort();
  filter();
  isQuiet = false;
}

if (bar) {
  bar.hidden = false;
  search.addEventListener("input", filter);
  fault.addEventListener("change", filter);
  order.addEventListener("change", () => { sort(); remember(wanted()); });
  bar.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-verdict]");
    if (!button) return;
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    filter();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      search.value = "";
      fault.value = "";
      document.querySelectorAll("button[data-verdict]").forEach((each) => each.setAttribute("aria-pressed", "false"));
      search.blur();
      filter();
      return;
    }
    if (event.target.matches("input, select")) return;
    if (event.key === "/") {
      event.preventDefault();
      search.focus();
    } else if (event.key === "j" || event.key === "k") {
      document.activeElement.blur();
      choose(event.key === "j" ? 1 : -1);
    } else if (event.key === "Enter" && chosen >= 0 && !event.target.matches("a, summary, button")) {
      const row = rows.filter((each) => !each.hidden)[chosen];
      if (row && row.dataset.row) location.hash = row.dataset.row;
    }
  });
  addEventListener("hashchange", restore);
  restore();
  isQuiet = true;
  filter();
  isQuiet = false;
}
