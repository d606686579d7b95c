/* Totals and the table of tensors. */

const CHUNK = 200;
const CHANGED = ["changed", "changed", (t) => (t.elements && !none(t.changed) ? t.changed / t.elements : null), (t) => share(t.changed, t.elements)];
const number = (name, label) => [name, label, (t) => t[name], (t) => small(t[name])];

/** Columns of measures: key, label, value to sort by, text. */
const MEASURES = SPECTRUM
  ? [
      ["effective_rank_share", "effective rank", (t) => t.effective_rank_share, (t) => share(t.effective_rank_share, 1)], number("stable_rank", "stable rank"),
      ["rank_90_share", "rank of 90 %", (t) => t.rank_90_share, (t) => share(t.rank_90_share, 1)], ["rank_99_share", "rank of 99 %", (t) => t.rank_99_share, (t) => share(t.rank_99_share, 1)],
      number("largest", "σ1"), number("norm", "norm"),
    ]
  : OVERLAP
  ? [
      ...(ADVICE ? [["top_conflict", "top conflict", (t) => t.top_conflict, (t) => share(t.top_conflict, 1)], number("norm_ratio", "norms, first / second")] : []),
      ["overlap", "changed by both", (t) => t.overlap, (t) => share(t.overlap, 1)],
      ["sign_agreement", "sign agreement", (t) => t.sign_agreement, (t) => share(t.sign_agreement, 1)],
      number("cosine", "cosine"), number("l2_1", "L2 of the first"), number("l2_2", "L2 of the second"),
    ]
  : [
      CHANGED, number("rel_l2", "relative L2"), number("max_abs", "max |δ|"), number("cosine_distance", "1 − cosine"), number("l2", "L2"), number("mean", "mean δ"),
      ["sign_flips", "sign flips", (t) => t.sign_flips, (t) => whole(t.sign_flips)],
    ];
const statusOf = (t) => (stateOf(t) === "apart" && t.status ? t.status.replace("_a", " base").replace("_b", " tuned").replaceAll("_", " ") : STATES[stateOf(t)]);
const COLUMNS = [
  ["name", "name", (t) => t.name, (t) => safe(t.name)],
  ...(OVERLAP || SPECTRUM ? [] : [["state", "state", statusOf, statusOf]]),
  ...MEASURES,
  ...(SPECTRUM ? [["shape", "shape", (t) => t.rows * t.columns, (t) => `${t.rows}×${t.columns}`]] : []),
  ...(OVERLAP || SPECTRUM ? [] : [
    ["shape", "shape", (t) => t.elements, (t) => (t.shape ?? []).join("×") + (t.shape_b ? ` → ${t.shape_b.join("×")}` : "")],
    ["dtype", "type", (t) => t.dtype, (t) => t.dtype + (t.dtype_b ? ` → ${t.dtype_b}` : "")],
  ]),
];
const TEXTS = ["name", "state", "dtype"];
let order = SPECTRUM ? { key: "effective_rank_share", down: false } : OVERLAP ? { key: "cosine", down: false } : { key: "rel_l2", down: true };
let rows = [];
let shown = 0;

function categories() {
  const head = make("tr");
  const columns = [...(SPECTRUM ? [["matrices", "matrices", null, (t) => whole(t.matrices)]] : OVERLAP ? [] : [["tensors", "tensors", null, (t) => whole(t.tensors)], ["differing", "differ", null, (t) => whole(t.differing)]]), ...MEASURES.slice(0, 4)];
  for (const label of ["", ...columns.map(([, label]) => label)]) head.append(make("th", label, { scope: "col" }));
  const thead = make("thead");
  thead.append(head);
  const body = make("tbody");
  const totals = OVERLAP ? data.categories : data.summary.categories;
  for (const [name, total] of [...Object.entries(totals), ["all", data.summary]]) {
    const tr = make("tr");
    tr.append(make("th", GROUPS.find(([category]) => category === name)?.[1] ?? "all", { scope: "row" }));
    for (const [, , , text] of columns) tr.append(make("td", text(total)));
    body.append(tr);
  }
  $("categories").append(thead, body);
  $("totals").hidden = data.identical === true;
}

function heads() {
  const tr = make("tr");
  for (const [name, label] of COLUMNS) {
    const th = make("th", undefined, { scope: "col", "data-key": name, class: TEXTS.includes(name) ? "text" : "" });
    const button = make("button", label, { type: "button" });
    button.addEventListener("click", () => {
      order = { key: name, down: order.key === name ? !order.down : !TEXTS.includes(name) };
      list();
    });
    th.append(button);
    tr.append(th);
  }
  $("tensors").tHead.append(tr);
}

function list() {
  const [, , value] = COLUMNS.find(([name]) => name === order.key);
  const wanted = $("search").value.trim().toLowerCase();
  const state = $("state").value;
  rows = data.tensors.filter((t) => t.name.toLowerCase().includes(wanted) && (!state || stateOf(t) === state));
  const sign = order.down ? -1 : 1;
  if (order.key === "name") {
    // Tensors come in natural order of their names.
    if (order.down) rows.reverse();
  } else {
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (none(x) || none(y)) return (none(x) ? 1 : 0) - (none(y) ? 1 : 0);
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
    const tr = make("tr", undefined, { tabindex: body.rows.length ? -1 : 0 });
    COLUMNS.forEach(([name, , , text], i) => {
      const cell = i === 0 ? make("th", undefined, { scope: "row" }) : make("td", undefined, TEXTS.includes(name) ? { class: "text" } : {});
      if (name === "state") cell.append(make("i", undefined, { class: `swatch ${stateOf(t)}`, "aria-hidden": "true" }));
      // A long name may break after a dot.
      if (i === 0) text(t).split(/(?<=\.)/).forEach((part) => cell.append(part, make("wbr")));
      else cell.append(text(t));
      if (i === 0 && t.renamed) cell.title = `${safe(t.renamed)} on the other side`;
      tr.append(cell);
    });
    tr.addEventListener("click", () => choose(tr, t));
    tr.addEventListener("keydown", (event) => rowKey(event, tr, t));
    body.append(tr);
  }
  shown = Math.min(shown + CHUNK, rows.length);
  $("more").hidden = shown >= rows.length;
  $("more").textContent = `Show ${whole(Math.min(CHUNK, rows.length - shown))} more of ${whole(rows.length - shown)}`;
}

function choose(tr, t) {
  for (const other of document.querySelectorAll('[aria-selected="true"]')) other.setAttribute("aria-selected", "false");
  for (const other of tr.parentElement.querySelectorAll('tr[tabindex="0"]')) other.tabIndex = -1;
  tr.tabIndex = 0;
  tr.setAttribute("aria-selected", "true");
  detail(safe(t.name), t, [t], tr);
}

/** Arrow keys go through the rows, Enter and Space show the numbers of one. */
function rowKey(event, tr, t) {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    choose(tr, t);
  }
  if (event.key === "ArrowDown" && !tr.nextElementSibling && !$("more").hidden) more();
  const to = event.key === "ArrowDown" ? tr.nextElementSibling : event.key === "ArrowUp" ? tr.previousElementSibling : null;
  if (!to) return;
  event.preventDefault();
  tr.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}
