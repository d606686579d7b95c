/* The map of layers and projections, and the strip of what stands outside of the layers. */

/** Rows and columns of the map at most: a browser cannot hold every cell of a hostile checkpoint. */
const MOST_CELLS = [400, 120];

/** What colour can show: words, value of a cell, and whether the scale is linear. */
const METRICS = SPECTRUM
  ? {
      effective_rank: ["effective rank, of the largest", (c) => c.effective_rank_share, true],
      rank_90: ["rank of 90 % of the energy, of the largest", (c) => c.rank_90_share, true],
      rank_99: ["rank of 99 % of the energy, of the largest", (c) => c.rank_99_share, true],
      stable_rank: ["stable rank", (c) => c.stable_rank],
    }
  : OVERLAP
  ? {
      ...(ADVICE && { top_conflict: ["top conflict", (c) => c.top_conflict, true] }),
      disagreement: ["sign disagreement", (c) => (none(c.sign_agreement) ? null : 1 - c.sign_agreement), true],
      overlap: ["share changed by both", (c) => c.overlap, true],
      cosine: ["1 − cosine of the task vectors", (c) => (none(c.cosine) ? null : 1 - c.cosine), true],
    }
  : {
      rel_l2: ["relative L2", (c) => c.rel_l2],
      changed: ["share changed", (c) => (c.elements ? c.changed / c.elements : null), true],
      max_abs: ["max |δ|", (c) => c.max_abs],
      cosine: ["1 − cosine", (c) => c.cosine_distance],
      flips: ["share of sign flips", (c) => (c.elements ? c.sign_flips / c.elements : null)],
    };

const GROUPS = [["attention", "attention"], ["mlp", "MLP"], ["norm", "norms"], ["embedding", "embeddings"], ["lm_head", "head"], ["other", "other"]];
const ORDER = ["q", "k", "v", "qkv", "o", "gate", "up", "gate up", "down"];
const key = (c) => `${place(c)}\u0000${c.projection}`;
const cells = new Map(data.summary.layers.map((c) => [key(c), c]));
const members = new Map();
for (const t of data.tensors) {
  if (!members.has(key(t))) members.set(key(t), []);
  members.get(key(t)).push(t);
}

/** `q_proj` as `q`, `post_attention_layernorm` as `post attn`: the group says the rest. */
const short = (projection) => projection.replace(/(_proj|_layernorm|_norm)$/, "").replace("attention", "attn").replace("feedforward", "MLP").replaceAll("_", " ");

/** Columns of the given tensors as [category, projection], by group and then in the order of a forward pass. */
function columnsOf(tensors) {
  const found = new Map();
  for (const t of tensors) if (!found.has(t.projection)) found.set(t.projection, [t.category, t.projection]);
  const rank = ([category]) => GROUPS.findIndex(([name]) => name === category);
  const order = ([, projection]) => (ORDER.indexOf(short(projection)) + ORDER.length + 1) % (ORDER.length + 1);
  return [...found.values()].sort((a, b) => rank(a) - rank(b) || order(a) - order(b) || (a[1] < b[1] ? -1 : 1)).slice(0, MOST_CELLS[1]);
}

/** Fills a grid; `labels` are those of its rows. */
function drawGrid(table, rows, columns, outside) {
  const groups = make("tr");
  const heads = make("tr");
  groups.append(make("td"));
  heads.append(outside ? make("td") : make("th", "layer", { scope: "col" }));
  const first = (j) => j === 0 || columns[j - 1][0] !== columns[j][0];
  const gap = (j, tr) => j > 0 && first(j) && tr.append(make("td", undefined, { class: "gap", "aria-hidden": "true" }));
  columns.forEach(([category, projection], j) => {
    gap(j, groups);
    gap(j, heads);
    if (first(j)) {
      const span = columns.filter(([other]) => other === category).length;
      groups.append(make("th", GROUPS.find(([name]) => name === category)[1], { scope: "colgroup", colspan: span }));
    }
    const label = safe(outside ? projection : short(projection));
    const long = !outside && label.split(" ").some((word) => word.length > 7);
    const th = make("th", undefined, { scope: "col", title: safe(projection), class: long ? "upright" : "" });
    th.append(make("span", label));
    heads.append(th);
  });
  const head = make("thead");
  head.append(groups, heads);
  const body = make("tbody");
  rows.forEach((row, i) => {
    const tr = make("tr");
    tr.append(make("th", outside ? "" : safe(row), { scope: "row" }));
    columns.forEach(([, projection], j) => {
      gap(j, tr);
      const td = make("td", undefined, { role: "gridcell" });
      if (cells.has(`${row}\u0000${projection}`)) {
        Object.assign(td.dataset, { at: `${i},${j}`, key: `${row}\u0000${projection}` });
        td.tabIndex = -1;
        td.addEventListener("click", () => select(td));
      }
      tr.append(td);
    });
    body.append(tr);
  });
  if (outside) table.append(make("caption", "Outside the layers"));
  table.append(head, body);
  table.addEventListener("keydown", (event) => move(event, table, rows.length, columns.length));
  const any = table.querySelector("td[data-at]");
  if (any) any.tabIndex = 0;
  table.hidden = !any;
}

function drawMap() {
  const inside = data.tensors.filter((t) => !none(t.layer));
  const rows = [...new Set(inside.map(place))].slice(0, MOST_CELLS[0]);
  drawGrid($("map"), rows, columnsOf(inside), false);
  drawGrid($("strip"), ["outside"], columnsOf(data.tensors.filter((t) => none(t.layer))), true);
  $("where").classList.toggle("bare", data.identical === true || data.summary.compared === 0);
}

const dark = () => document.documentElement.dataset.theme === "dark";

/** The colour at 0 to 1; the low end is the one nearest to the background, in both themes. */
function color(at) {
  const position = dark() ? 0.2 + 0.8 * at : 1 - 0.92 * at;
  const x = Math.min(Math.max(position, 0), 1) * (STOPS.length - 1);
  const i = Math.min(Math.floor(x), STOPS.length - 2);
  return `rgb(${STOPS[i].map((from, k) => Math.round(from + (STOPS[i + 1][k] - from) * (x - i))).join(" ")})`;
}

/** The scale over the values above 0: from their 2nd to their 98th percentile, so that one outlier does not flatten the rest. */
function scaleOf(values, linear) {
  const sorted = values.map((v) => (linear ? v : Math.log10(v))).sort((a, b) => a - b);
  const at = (q) => sorted[Math.round(q * (sorted.length - 1))];
  let [low, high] = [at(0.02), at(0.98)];
  if (!linear) low = Math.max(low, high - 6);
  const flat = high - low < (linear ? 1e-9 : 0.02);
  const position = (v) => (flat ? 0.6 : Math.min(Math.max(((linear ? v : Math.log10(v)) - low) / (high - low), 0), 1));
  return { position, ends: [low, high].map((v) => (linear ? v : 10 ** v)) };
}

function paint() {
  const [label, measure, linear] = METRICS[$("metric").value];
  const values = [...cells.values()].map(measure).filter((v) => v > 0);
  const scale = values.length ? scaleOf(values, linear) : null;
  const seen = new Set();
  for (const td of document.querySelectorAll(".map td[data-at]")) {
    const cell = cells.get(td.dataset.key);
    const value = measure(cell);
    let state = stateOfAll(members.get(td.dataset.key));
    // What moved by NaN alone, or from a side of zeros, has no size: it is not "unchanged".
    if (state === "moved" && none(value)) state = "apart";
    const broken = cell.nonfinite_a + cell.nonfinite_b > 0;
    const colored = value > 0 || (OVERLAP && value === 0);
    seen.add(state).add(broken ? "broken" : state);
    for (const name of Object.keys(STATES)) td.classList.toggle(name, state === name);
    td.classList.toggle("broken", broken);
    td.style.background = colored && scale ? color(value > 0 ? scale.position(value) : 0) : "";
    const text = `${td.dataset.key.split("\u0000").map(safe).join(" ")}: ${STATES[state]}${colored ? `, ${label} ${small(value)}` : ""}${broken ? ", has NaN or infinite elements" : ""}`;
    td.setAttribute("aria-label", text);
    td.title = text;
  }
  legend(label, scale, linear, seen);
}

function legend(label, scale, linear, seen) {
  const box = $("legend");
  box.replaceChildren();
  if (scale) {
    const ramp = make("i", undefined, { class: "ramp", "aria-hidden": "true" });
    ramp.style.background = `linear-gradient(90deg, ${Array.from({ length: 9 }, (_, i) => color(i / 8)).join(", ")})`;
    const line = make("p");
    line.append(make("span", small(scale.ends[0])), ramp, make("span", small(scale.ends[1])));
    box.append(line, make("p", `${label}, ${linear ? "linear" : "logarithmic"} from the 2nd to the 98th percentile`));
  }
  const keys = make("p");
  const words = { ...STATES, broken: "NaN or infinite elements" };
  for (const state of ["violation", "frozen", "unmoved", "same", "apart", "broken"]) {
    if (!seen.has(state)) continue;
    const item = make("span", undefined, { class: "key" });
    item.append(make("i", undefined, { class: `swatch ${state}`, "aria-hidden": "true" }), words[state]);
    keys.append(item);
  }
  const absent = make("span", undefined, { class: "key" });
  absent.append(make("i", undefined, { class: "swatch absent", "aria-hidden": "true" }), "no such tensor");
  if ([...document.querySelectorAll(".map td[role]:not([data-at])")].length) keys.append(absent);
  box.append(keys);
}

/** Arrow keys, Home and End go to the next cell in that direction that has tensors; Enter and Space select. */
function move(event, table, rows, columns) {
  const from = event.target.closest("td[data-at]");
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -columns], End: [0, columns] };
  if (!from) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    select(from);
    return;
  }
  if (!steps[event.key]) return;
  event.preventDefault();
  let [i, j] = from.dataset.at.split(",").map(Number);
  let [di, dj] = steps[event.key];
  if (event.key === "Home") [j, dj] = [-1, 1];
  if (event.key === "End") [j, dj] = [columns, -1];
  let to = null;
  do {
    [i, j] = [i + di, j + dj];
    if (i < 0 || j < 0 || i >= rows || j >= columns) return;
    to = table.querySelector(`td[data-at="${i},${j}"]`);
  } while (!to);
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

function select(td) {
  for (const other of document.querySelectorAll('[aria-selected="true"]')) other.setAttribute("aria-selected", "false");
  for (const other of td.closest("table").querySelectorAll('td[tabindex="0"]')) other.tabIndex = -1;
  td.tabIndex = 0;
  td.setAttribute("aria-selected", "true");
  const [row, projection] = td.dataset.key.split("\u0000");
  detail(safe(row === "outside" ? projection : `Layer ${row} · ${projection}`), cells.get(td.dataset.key), members.get(td.dataset.key), td);
}
