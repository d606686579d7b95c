"use strict";

/* Each model on each file: bars with 95 % intervals, and the differences to the first model. */

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const METRICS = {
  loss: { label: "Loss, nats per token", lower: true },
  perplexity: { label: "Perplexity", lower: true },
  accuracy: { label: "Accuracy", share: true },
  accuracy_norm: { label: "Accuracy by log-probability per character", share: true },
  exact_match: { label: "Exact match", share: true },
  contains: { label: "Contains the answer", share: true },
  numeric_match: { label: "Numeric match", share: true },
};

/** An element with text and a class; names are only ever set as text. */
function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** A name as it is, but for characters that could reorder or hide text. */
const safe = (name) => name.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
const none = (x) => x === null || x === undefined;
const whole = (n) => n.toLocaleString("en-US");
const number = (x) => (none(x) ? "–" : Math.abs(x) < 1e5 ? x.toFixed(4) : x.toExponential(3));
const signed = (x) => (x < 0 ? "−" : "+") + number(Math.abs(x));
const models = [...new Set(data.map((one) => one.model))];
const files = [...new Set(data.map((one) => one.data))];

function part(className, left, width) {
  const element = make("span", undefined, className);
  element.style.left = `${left}%`;
  if (!none(width)) element.style.width = `${width}%`;
  return element;
}

/** The bar of a mean, with a line over its 95 % interval. */
function track(mean, stderr, most) {
  const bar = make("span", undefined, "track");
  const at = (x) => 100 * Math.min(1, Math.max(0, x / most));
  bar.append(part("fill", 0, at(mean)));
  if (!none(stderr)) bar.append(part("error", at(mean - 1.96 * stderr), at(mean + 1.96 * stderr) - at(mean - 1.96 * stderr)));
  return bar;
}

/** Whether a difference is surely for the better or for the worse. */
function verdictOf(low, high, lower) {
  if (none(low) || (low <= 0 && high >= 0)) return "";
  return low > 0 === !lower ? "better" : "worse";
}

function metricSection(name, rows) {
  const { label, lower, share } = METRICS[name];
  const section = make("div", undefined, "metric");
  section.append(make("h3", label));
  const bars = make("div", undefined, "bars");
  const key = (part) => `${name}_difference${part}`;
  const most = share ? 1 : Math.max(...rows.map((one) => one[name] + 1.96 * (one[`${name}_stderr`] ?? 0))) || 1;
  const reach = Math.max(...rows.flatMap((one) => [one[key("")], one[key("_low")], one[key("_high")]].filter((x) => !none(x)).map(Math.abs)), 1e-9);
  for (const one of rows) {
    const stderr = one[`${name}_stderr`];
    const value = make("span", number(one[name]), "value");
    if (!none(stderr)) value.append(" ", make("small", `± ${number(stderr)}`));
    const axis = make("span", undefined, "axis");
    const difference = make("span", undefined, "difference");
    if (!none(one[key("")])) {
      const [middle, low, high] = ["", "_low", "_high"].map((end) => one[key(end)]);
      const verdict = verdictOf(low, high, lower);
      const at = (x) => 50 + 46 * (x / reach);
      axis.append(make("span", undefined, "zero"));
      if (!none(low)) axis.append(part("interval", at(low), at(high) - at(low)));
      axis.append(part("point", at(middle)));
      if (verdict) axis.classList.add(verdict);
      difference.textContent = signed(middle);
      if (verdict) difference.classList.add(verdict);
      if (!none(low)) difference.append(" ", make("small", `${signed(low)} to ${signed(high)}`));
    }
    bars.append(make("span", safe(one.model), "model"), track(one[name], stderr, most), value, axis, difference);
  }
  section.append(bars);
  return section;
}

const isMeasured = (name, rows) => rows.some((one) => !none(one[name]));

function fileSection(file) {
  const rows = data.filter((one) => one.data === file);
  const section = make("section");
  section.append(make("h2", safe(file)));
  const { kind, rows: count, tokens } = rows[0];
  const what = { loss: "target tokens", choice: "tokens of choices", generate: "written tokens" }[kind];
  section.append(make("p", `${kind} · ${whole(count)} rows · ${whole(tokens)} ${what}`));
  for (const name of Object.keys(METRICS)) if (isMeasured(name, rows)) section.append(metricSection(name, rows.filter((one) => !none(one[name]))));
  return section;
}

function allNumbers() {
  const names = Object.keys(METRICS).filter((name) => isMeasured(name, data));
  const head = make("tr");
  for (const title of ["File", "Model", "Rows", "Tokens", ...names]) head.append(make("th", title.replace("_", " "), title === "Model" ? "text" : undefined));
  const body = make("tbody");
  for (const one of data) {
    const row = make("tr");
    row.append(make("th", safe(one.data)), make("td", safe(one.model), "text"), make("td", whole(one.rows)), make("td", whole(one.tokens)));
    for (const name of names) row.append(make("td", number(one[name])));
    body.append(row);
  }
  const top = make("thead");
  top.append(head);
  $("all").append(top, body);
}

function theme(isDark) {
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  $("theme").textContent = isDark ? "Light" : "Dark";
}

const counted = (n, one, many) => `${n} ${n === 1 ? one : many}`;
$("names").textContent = models.map(safe).join(" · ");
$("verdict-title").textContent = `${counted(models.length, "model", "models")} on ${counted(files.length, "file", "files")}`;
$("sentence").textContent = models.length > 1
  ? `Lines are 95 % intervals. Differences are to ${safe(models[0])}, over the same rows; one whose interval holds 0 is noise.`
  : "Lines are 95 % intervals over rows.";
$("files").append(...files.map(fileSection));
allNumbers();
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
theme(prefersDark.matches);
prefersDark.addEventListener("change", (event) => theme(event.matches));
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
