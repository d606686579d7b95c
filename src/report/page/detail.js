/* The numbers of one cell, one tensor or everything. */

function histogramOf(tensors) {
  const counts = new Map();
  for (const t of tensors) for (const bin of t.histogram ?? []) counts.set(bin.log10, (counts.get(bin.log10) ?? 0) + bin.count);
  return [...counts].sort((a, b) => a[0] - b[0]).map(([log10, count]) => ({ log10, count }));
}

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/** The next of 1, 2, 3, 4, 6, 8, 10, 20, … that is not below `n`. */
function roundUp(n) {
  const decade = 10 ** Math.floor(Math.log10(n));
  return [1, 2, 3, 4, 6, 8, 10].map((step) => step * decade).find((step) => step >= n);
}

/** Bars of half a decade of |δ|, with counts on one axis and decades on the other. */
function drawHistogram(bins) {
  const [width, height, left, right, bottom, top] = [300, 150, 44, 16, 20, 8];
  const first = Math.floor(bins[0].log10);
  const last = Math.max(Math.ceil(bins[bins.length - 1].log10 + 0.5), first + 1);
  const most = roundUp(Math.max(...bins.map((b) => b.count)));
  const x = (log10) => left + ((log10 - first) / (last - first)) * (width - left - right);
  const y = (count) => top + (1 - count / most) * (height - top - bottom);
  const text = bins.map((b) => `10 to the ${b.log10}: ${whole(b.count)}`).join(", ");
  const out = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img", "aria-label": `Elements by size of the change, from ${text}` });
  for (const count of [0, most / 2, most]) {
    if (count % 1 !== 0) continue;
    out.append(svg("line", { x1: left, x2: width - right, y1: y(count), y2: y(count) }));
    out.append(svg("text", { x: left - 5, y: y(count) + 4, "text-anchor": "end" }, compact(count)));
  }
  const every = Math.ceil((last - first) / 6);
  for (let decade = first; decade <= last; decade += every) {
    out.append(svg("text", { x: x(decade), y: height - 5, "text-anchor": "middle" }, `10${superscript(decade)}`));
  }
  for (const b of bins) {
    const bar = svg("rect", { x: x(b.log10) + 0.5, y: y(b.count), width: Math.max(x(b.log10 + 0.5) - x(b.log10) - 1, 1), height: Math.max(y(0) - y(b.count), 1) });
    bar.append(svg("title", {}, `${small(10 ** b.log10)} to ${small(10 ** (b.log10 + 0.5))}: ${whole(b.count)}`));
    out.append(bar);
  }
  return out;
}

/** Of the elements that changed: by the first only, by both in one direction or in two, by the second only. */
function drawOverlap(sums) {
  const same = none(sums.sign_agreement) ? 0 : Math.round(sums.sign_agreement * sums.changed_both);
  const parts = [["first only", sums.changed_1 - sums.changed_both], ["both, same sign", same], ["both, opposite signs", sums.changed_both - same], ["second only", sums.changed_2 - sums.changed_both]];
  const all = parts.reduce((sum, [, n]) => sum + n, 0);
  const bar = make("div", undefined, { class: "parts", "aria-hidden": "true" });
  const list = make("ul", undefined, { class: "parts-key" });
  parts.forEach(([label, n], i) => {
    const part = make("i", undefined, { class: `part-${i}` });
    part.style.flexGrow = n;
    if (n) bar.append(part);
    const item = make("li");
    item.append(make("i", undefined, { class: `swatch part-${i}`, "aria-hidden": "true" }), `${label} `, make("span", share(n, all)));
    list.append(item);
  });
  return [bar, list];
}

function numbersOf(sums) {
  if (SPECTRUM) {
    const one = none(sums.max_rank) ? [["matrices", whole(sums.matrices)]] : [["shape", `${sums.rows}×${sums.columns}`], ["effective rank", small(sums.effective_rank)]];
    const energy = Object.entries(sums.energy ?? {}).map(([k, part]) => [`energy of the ${k} largest`, share(part, 1)]);
    return [...one, ["effective rank, of the largest", share(sums.effective_rank_share, 1)], ["stable rank", small(sums.stable_rank)],
      ["rank of 90 %, of the largest", share(sums.rank_90_share, 1)], ["rank of 99 %, of the largest", share(sums.rank_99_share, 1)],
      ...(none(sums.max_rank) ? [] : [["σ1", small(sums.largest)], ["norm", small(sums.norm)]]), ...energy];
  }
  if (OVERLAP) {
    const top = ADVICE ? [["top conflict", share(sums.top_conflict, 1)], ["norms, first / second", small(sums.norm_ratio)]] : [];
    return [...top, ["elements", whole(sums.elements)], ["changed by both", share(sums.overlap, 1)], ["sign agreement", share(sums.sign_agreement, 1)], ["cosine", small(sums.cosine)],
      ["L2 of the first", small(sums.l2_1)], ["L2 of the second", small(sums.l2_2)]];
  }
  return [["elements", whole(sums.elements)], ["changed", share(sums.changed, sums.elements)], ["relative L2", small(sums.rel_l2)], ["L2", small(sums.l2)],
    ["max |δ|", small(sums.max_abs)], ["mean δ", small(sums.mean)], ["1 − cosine", small(sums.cosine_distance)], ["sign flips", whole(sums.sign_flips)],
    ["NaN or infinite", none(sums.nonfinite_a) ? "–" : `${whole(sums.nonfinite_a)} → ${whole(sums.nonfinite_b)}`]];
}

/** Shows the numbers of `tensors`; `from` is the cell or row that was chosen, and takes the focus back on a phone. */
function detail(title, sums, tensors, from) {
  const box = $("detail");
  const state = tensors.length ? STATES[stateOfAll(tensors)] : "";
  const close = make("button", "Close", { type: "button", class: "close" });
  const shut = () => {
    box.classList.remove("open", "floating");
    from?.focus();
  };
  close.addEventListener("click", shut);
  box.onkeydown = (event) => event.key === "Escape" && shut();
  box.replaceChildren(close, make("h3", title), make("p", tensors.length === 1 ? state : from ? `${whole(tensors.length)} tensors, ${state}` : `${whole(tensors.length)} tensors; choose a cell or a row for its numbers`));
  const list = make("dl");
  for (const [name, value] of numbersOf(sums)) list.append(make("dt", name), make("dd", value));
  box.append(list);
  const bins = histogramOf(tensors);
  if (OVERLAP) box.append(...drawOverlap(sums));
  else if (bins.length) box.append(make("p", "Elements by |δ|", { class: "axis" }), drawHistogram(bins));
  if (from && tensors[0]?.name !== title) {
    const names = make("ul", undefined, { class: "names" });
    for (const t of tensors.slice(0, 100)) {
      const item = make("li");
      item.append(make("code", safe(t.name)));
      names.append(item);
    }
    box.append(names);
  }
  box.classList.toggle("open", Boolean(from));
  // A row stands far below the map: its numbers come to it.
  box.classList.toggle("floating", from?.tagName === "TR");
  from?.scrollIntoView({ block: "nearest" });
}
