"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const STOPS = /*STOPS*/[];
const CHUNK = 200;
/** Rows and columns of the heat map at most: a browser cannot hold every cell of a hostile checkpoint. */
const MOST_CELLS = [400, 120];
const $ = (id) => document.getElementById(id);

/** An element with text and attributes; names from files are only ever set as text. */
function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A name as it is, but for characters that could reorder or hide text. */
const safe = (name) => name.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
const whole = (n) => (n ?? 0).toLocaleString("en-US");
const small = (x) => (x === null || x === undefined ? "–" : x === 0 ? "0" : Math.abs(x) >= 0.01 && Math.abs(x) < 1e4 ? x.toPrecision(4) : x.toExponential(2));
const share = (part, all) => (all ? ((100 * part) / all).toFixed(part && part < all ? 2 : 0) + " %" : "–");
const place = (t) => (t.layer === null ? "outside" : stacks.size > 1 ? `${t.stack}.${t.layer}` : String(t.layer));
const stacks = new Set(data.summary.layers.filter((c) => c.layer !== null).map((c) => c.stack));

/** What the heat map can show; all are 0 where nothing changed. */
const METRICS = {
  rel_l2: ["relative L2", (c) => c.rel_l2],
  changed: ["share changed", (c) => (c.elements ? c.changed / c.elements : null)],
  max_abs: ["max |δ|", (c) => c.max_abs],
  cosine: ["1 − cosine", (c) => (c.cosine === null ? null : Math.max(0, 1 - c.cosine))],
  flips: ["share of sign flips", (c) => (c.elements ? c.sign_flips / c.elements : null)],
};

function color(at) {
  const x = Math.min(Math.max(at, 0), 1) * (STOPS.length - 1);
  const i = Math.min(Math.floor(x), STOPS.length - 2);
  return `rgb(${STOPS[i].map((from, k) => Math.round(from + (STOPS[i + 1][k] - from) * (x - i))).join(" ")})`;
}

/* Summary */

function summary() {
  const s = data.summary;
  $("path-a").textContent = safe(s.a);
  $("path-b").textContent = safe(s.b);
  const tile = (name, value, note) => {
    const box = make("div");
    const dd = make("dd", value);
    if (note) dd.append(make("small", note));
    box.append(make("dt", name), dd);
    $("summary").append(box);
  };
  tile("Tensors that differ", `${whole(s.differing)} of ${whole(s.tensors)}`);
  tile("Elements changed", share(s.changed, s.elements), `${whole(s.changed)} of ${whole(s.elements)}`);
  tile("Relative L2", small(s.rel_l2));
  tile("Largest |δ|", small(s.max_abs), safe(s.max_abs_tensor ?? ""));
  tile("Cosine", s.cosine === null ? "–" : s.cosine.toFixed(6));
  tile("Sign flips", whole(s.sign_flips));
  tile("NaN or infinite", `${whole(s.nonfinite_a)} → ${whole(s.nonfinite_b)}`, "in a → in b");
}

/* Heat map */

const cells = new Map(data.summary.layers.map((c) => [`${place(c)}\u0000${c.projection}`, c]));
const allRows = [...new Set(data.summary.layers.filter((c) => c.layer !== null).map(place)), ...(data.summary.layers.some((c) => c.layer === null) ? ["outside"] : [])];
const allColumns = columns();
const rowNames = allRows.slice(0, MOST_CELLS[0]);
const columnNames = allColumns.slice(0, MOST_CELLS[1]);
let focus = [0, 0];

/** Projections of blocks in the order of categories, then those outside of blocks. */
function columns() {
  const order = ["attention", "mlp", "norm", "embedding", "lm_head", "other"];
  const first = new Map();
  for (const t of data.tensors) {
    const rank = order.indexOf(t.category) + (t.layer === null ? order.length : 0);
    first.set(t.projection, Math.min(rank, first.get(t.projection) ?? rank));
  }
  return [...first.keys()].sort((a, b) => first.get(a) - first.get(b) || (a < b ? -1 : 1));
}

function drawMap() {
  const head = make("tr");
  head.append(make("td"));
  for (const name of columnNames) {
    const th = make("th", undefined, { scope: "col" });
    th.append(make("span", safe(name)));
    head.append(th);
  }
  const thead = make("thead");
  thead.append(head);
  const body = make("tbody");
  rowNames.forEach((row, i) => {
    const tr = make("tr");
    tr.append(make("th", safe(row), { scope: "row" }));
    columnNames.forEach((column, j) => {
      const cell = cells.get(`${row}\u0000${column}`);
      const td = make("td", undefined, { role: "gridcell" });
      if (cell) {
        td.tabIndex = -1;
        td.dataset.at = `${i},${j}`;
        td.addEventListener("click", () => select(i, j));
      }
      tr.append(td);
    });
    body.append(tr);
  });
  $("map").append(thead, body);
  $("map").addEventListener("keydown", move);
  const any = $("map").querySelector("td[data-at]");
  if (any) {
    any.tabIndex = 0;
    focus = any.dataset.at.split(",").map(Number);
  }
}

const cellAt = (i, j) => $("map").querySelector(`td[data-at="${i},${j}"]`);

function paint() {
  const [label, measure] = METRICS[$("metric").value];
  const values = [...cells.values()].map(measure).filter((v) => v > 0).map(Math.log10);
  const high = values.reduce((a, b) => Math.max(a, b), -300);
  const low = Math.max(Math.min(values.reduce((a, b) => Math.min(a, b), high), high - 0.1), high - 6);
  for (const td of $("map").querySelectorAll("td[data-at]")) {
    const [i, j] = td.dataset.at.split(",").map(Number);
    const value = measure(cells.get(`${rowNames[i]}\u0000${columnNames[j]}`));
    const cell = cells.get(`${rowNames[i]}\u0000${columnNames[j]}`);
    td.style.background = value > 0 ? color((Math.log10(value) - low) / (high - low)) : "";
    const broken = cell.nonfinite_a + cell.nonfinite_b > 0;
    td.classList.toggle("broken", broken);
    td.classList.toggle("new", cell.differing > 0 && !(value > 0));
    const size = value === null ? "not comparable" : small(value);
    const text = `${safe(rowNames[i])} ${safe(columnNames[j])}, ${label} ${size}${broken ? ", has NaN or infinite elements" : ""}`;
    td.setAttribute("aria-label", text);
    td.title = text;
  }
  const legend = $("legend");
  legend.replaceChildren();
  if (values.length) {
    const ramp = make("i");
    ramp.style.background = `linear-gradient(90deg, ${STOPS.map((s) => `rgb(${s.join(" ")})`).join(", ")})`;
    legend.append(make("span", small(10 ** low)), ramp, make("span", small(10 ** high)), make("span", `${label}, logarithmic; grey is unchanged`));
  }
  legend.append(make("span", "hatched: differs, but not in this measure; red frame: NaN or infinite"));
  const left = [allRows.length - rowNames.length, allColumns.length - columnNames.length];
  if (left[0] + left[1] > 0) legend.append(make("span", `${left[0]} more rows and ${left[1]} more columns are in the table of tensors`));
}

/** Arrow keys go to the next cell that has tensors; Enter and Space show it. */
function move(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    select(...focus);
    return;
  }
  if (!step) return;
  event.preventDefault();
  let [i, j] = focus;
  do {
    i += step[0];
    j += step[1];
    if (i < 0 || j < 0 || i >= rowNames.length || j >= columnNames.length) return;
  } while (!cellAt(i, j));
  rove(i, j);
  cellAt(i, j).focus();
}

function rove(i, j) {
  const before = cellAt(...focus);
  if (before) before.tabIndex = -1;
  focus = [i, j];
  cellAt(i, j).tabIndex = 0;
}

function select(i, j) {
  rove(i, j);
  $("map").querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
  cellAt(i, j).setAttribute("aria-selected", "true");
  const [row, column] = [rowNames[i], columnNames[j]];
  const members = data.tensors.filter((t) => t.projection === column && place(t) === row);
  detail(safe(row === "outside" ? column : `Layer ${row} · ${column}`), cells.get(`${row}\u0000${column}`), members);
}

/* Details */

function histogramOf(tensors) {
  const counts = new Map();
  for (const t of tensors) for (const bin of t.histogram ?? []) counts.set(bin.log10, (counts.get(bin.log10) ?? 0) + bin.count);
  return [...counts].sort((a, b) => a[0] - b[0]).map(([log10, count]) => ({ log10, count }));
}

function drawHistogram(bins, target) {
  if (!bins.length) {
    target.append(make("p", "Nothing changed in value."));
    return;
  }
  const most = bins.reduce((n, b) => Math.max(n, b.count), 1);
  const total = bins.reduce((sum, b) => sum + b.count, 0);
  const text = bins.map((b) => `1e${b.log10}: ${whole(b.count)}`).join(", ");
  const box = make("div", undefined, { class: "histogram", role: "img", "aria-label": `Elements by size of the change: ${text}` });
  for (const b of bins) {
    const bar = make("i", undefined, { title: `1e${b.log10} to 1e${b.log10 + 0.5}: ${whole(b.count)} (${share(b.count, total)})` });
    bar.style.height = `${Math.max(1, (100 * b.count) / most)}%`;
    box.append(bar);
  }
  const axis = make("div", undefined, { class: "axis" });
  axis.append(make("span", `1e${bins[0].log10}`), make("span", "log10 |δ|"), make("span", `1e${bins[bins.length - 1].log10 + 0.5}`));
  target.append(box, axis);
}

function detail(title, sums, members) {
  const box = $("detail");
  box.replaceChildren(make("h3", title), make("p", members.length === 1 ? members[0].status.replaceAll("_", " ") : `${whole(members.length)} tensors`));
  const list = make("dl");
  const rows = [["elements", whole(sums.elements)], ["changed", share(sums.changed, sums.elements)], ["relative L2", small(sums.rel_l2)], ["L2", small(sums.l2)],
    ["max |δ|", small(sums.max_abs)], ["mean δ", small(sums.mean)], ["cosine", sums.cosine === null ? "–" : sums.cosine.toFixed(6)], ["sign flips", whole(sums.sign_flips)],
    ["NaN or infinite", `${whole(sums.nonfinite_a)} → ${whole(sums.nonfinite_b)}`]];
  for (const [name, value] of rows) list.append(make("dt", name), make("dd", value));
  box.append(list);
  drawHistogram(histogramOf(members), box);
  const names = make("ul");
  for (const t of members.slice(0, 100)) {
    const item = make("li");
    item.append(make("code", safe(t.name)));
    names.append(item);
  }
  if (members.length > 1 || title !== members[0]?.name) box.append(names);
}

/* Roll-ups */

function rollup(id, totals) {
  const head = make("tr");
  for (const name of ["", "tensors", "differ", "changed", "relative L2", "max |δ|"]) head.append(make("th", name, { scope: "col" }));
  const thead = make("thead");
  thead.append(head);
  const body = make("tbody");
  for (const [name, t] of Object.entries(totals)) {
    const tr = make("tr");
    tr.append(make("th", safe(name), { scope: "row" }));
    for (const text of [whole(t.tensors), whole(t.differing), share(t.changed, t.elements), small(t.rel_l2), small(t.max_abs)]) tr.append(make("td", text));
    body.append(tr);
  }
  $(id).append(thead, body);
}

/* Tensors */

const COLUMNS = [
  ["name", "name", (t) => t.name, (t) => safe(t.name)],
  ["status", "status", (t) => t.status, (t) => t.status.replaceAll("_", " ")],
  ["shape", "shape", (t) => t.elements, (t) => (t.shape ?? []).join("×") + (t.shape_b ? " → " + t.shape_b.join("×") : "")],
  ["dtype", "type", (t) => t.dtype, (t) => t.dtype + (t.dtype_b ? " → " + t.dtype_b : "")],
  ["changed", "changed", (t) => (t.elements ? t.changed / t.elements : 0), (t) => (t.changed === null ? "–" : share(t.changed, t.elements))],
  ["rel_l2", "relative L2", (t) => t.rel_l2, (t) => small(t.rel_l2)],
  ["l2", "L2", (t) => t.l2, (t) => small(t.l2)],
  ["max_abs", "max |δ|", (t) => t.max_abs, (t) => small(t.max_abs)],
  ["mean", "mean δ", (t) => t.mean, (t) => small(t.mean)],
  ["cosine", "cosine", (t) => t.cosine, (t) => (t.cosine === null ? "–" : t.cosine.toFixed(6))],
  ["sign_flips", "sign flips", (t) => t.sign_flips, (t) => (t.sign_flips === null ? "–" : whole(t.sign_flips))],
];
let order = { key: "rel_l2", down: true };
let rows = [];
let shown = 0;

function heads() {
  const tr = make("tr");
  for (const [key, label] of COLUMNS) {
    const th = make("th", undefined, { scope: "col", "data-key": key });
    const button = make("button", label, { type: "button" });
    button.addEventListener("click", () => {
      order = { key, down: order.key === key ? !order.down : key !== "name" && key !== "status" && key !== "dtype" };
      list();
    });
    th.append(button);
    tr.append(th);
  }
  $("tensors").tHead.append(tr);
}

function list() {
  const [, , value] = COLUMNS.find(([key]) => key === order.key);
  const wanted = $("search").value.trim().toLowerCase();
  const status = $("status").value;
  rows = data.tensors.filter((t) => t.name.toLowerCase().includes(wanted) && (!status || t.status === status));
  const sign = order.down ? -1 : 1;
  if (order.key === "name") {
    if (order.down) rows.reverse();
  } else {
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null || x === undefined || y === undefined) return (x === null || x === undefined ? 1 : 0) - (y === null || y === undefined ? 1 : 0);
      return sign * (x < y ? -1 : x > y ? 1 : 0);
    });
  }
  for (const th of $("tensors").tHead.querySelectorAll("th")) {
    th.setAttribute("aria-sort", th.dataset.key !== order.key ? "none" : order.down ? "descending" : "ascending");
  }
  $("tensors").tBodies[0].replaceChildren();
  shown = 0;
  more();
  $("count").textContent = `${whole(rows.length)} of ${whole(data.tensors.length)}`;
}

function more() {
  const body = $("tensors").tBodies[0];
  for (const t of rows.slice(shown, shown + CHUNK)) {
    const tr = make("tr");
    COLUMNS.forEach(([, , , text], i) => {
      const cell = i === 0 ? make("th", text(t), { scope: "row" }) : make("td", text(t), i === 1 || i === 3 ? { class: "text" } : {});
      if (i === 0 && t.renamed) cell.title = `${safe(t.renamed)} on the other side`;
      tr.append(cell);
    });
    body.append(tr);
  }
  shown = Math.min(shown + CHUNK, rows.length);
  $("more").hidden = shown >= rows.length;
  $("more").textContent = `Show ${whole(Math.min(CHUNK, rows.length - shown))} more of ${whole(rows.length - shown)}`;
}

/* Start */

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(dark));
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
theme(prefersDark.matches);
prefersDark.addEventListener("change", (event) => theme(event.matches));
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
for (const [key, [label]] of Object.entries(METRICS)) $("metric").append(make("option", label, { value: key }));
$("metric").addEventListener("change", paint);
$("status").append(make("option", "all", { value: "" }));
for (const status of Object.keys(data.summary.statuses)) $("status").append(make("option", status.replaceAll("_", " "), { value: status }));
$("status").addEventListener("change", list);
$("search").addEventListener("input", list);
$("more").addEventListener("click", more);
summary();
drawMap();
paint();
detail("All tensors", data.summary, data.tensors);
rollup("categories", data.summary.categories);
rollup("shards", data.summary.shards);
heads();
list();
