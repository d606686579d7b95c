"use strict";

/* The document, words and numbers. */

const documents = JSON.parse(document.getElementById("data").textContent);
/** The document, or the one of several that the address names. */
const data = documents.documents?.[Number(location.hash.slice(1)) || 0] ?? documents.documents?.[0] ?? documents;
const OVERLAP = data.kind === "overlap";
/** Whether the largest changes were counted, for advice on a merge. */
const ADVICE = OVERLAP && Boolean(data.advice);
const SPECTRUM = data.kind === "spectrum";
const STOPS = /*STOPS*/[];
const $ = (id) => document.getElementById(id);

/** An element with text and attributes; names from files are only ever set as text. */
function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** A name as it is, but for characters that could reorder or hide text. */
const safe = (name) => name.replace(/[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
const none = (x) => x === null || x === undefined;
const whole = (n) => (none(n) ? "–" : n.toLocaleString("en-US"));
const compact = (n) => n.toLocaleString("en-US", { notation: "compact", maximumSignificantDigits: 3 });
const small = (x) => (none(x) ? "–" : x === 0 ? "0" : Math.abs(x) >= 0.01 && Math.abs(x) < 1e4 ? x.toPrecision(3) : x.toExponential(2));
const counted = (n, one, many) => `${whole(n)} ${n === 1 ? one : many}`;

/** Part of all as a percentage that is 0 % or 100 % only where it is exactly that. */
function share(part, all) {
  if (none(part) || !all) return "–";
  if (part === 0 || part === all) return part ? "100 %" : "0 %";
  const percent = (100 * part) / all;
  if (percent < 0.01) return "< 0.01 %";
  return percent > 99.99 ? "> 99.99 %" : `${percent.toFixed(percent < 10 ? 2 : 1)} %`;
}

/** The last part of a path, by which people call a checkpoint. */
const nameOf = (path) => safe(path.replace(/\/+$/, "").split("/").pop() || path);
const superscript = (n) => String(n).replace(/[-0-9]/g, (c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]);

/**
 * What a tensor, or a cell of the map with all its tensors, is: `violation` (frozen, but it moved), `moved`, `frozen`, `unmoved`
 * (trainable, with the bytes of before), `same` (bit-identical, without a plan), or `apart` (not compared).
 */
const STATES = {
  violation: "frozen, but it moved",
  moved: OVERLAP ? "compared" : SPECTRUM ? "has a spectrum" : data.plan ? "trained" : "changed",
  unmoved: "trainable, but unmoved",
  frozen: "frozen, bit-identical",
  same: "bit-identical",
  apart: SPECTRUM ? "no spectrum" : "not compared",
};

function stateOf(t) {
  if (OVERLAP) return "moved";
  if (SPECTRUM) return none(t.norm) ? "apart" : "moved";
  if (t.status === "identical") return none(t.trainable) ? "same" : t.trainable ? "unmoved" : "frozen";
  if (t.trainable === false) return "violation";
  return t.changed === null ? "apart" : "moved";
}

function stateOfAll(members) {
  const states = new Set(members.map(stateOf));
  return ["violation", "moved", "apart", "unmoved", "frozen", "same"].find((state) => states.has(state));
}

const stacks = new Set(data.summary.layers.filter((c) => !none(c.layer)).map((c) => c.stack));
const place = (t) => (none(t.layer) ? "outside" : stacks.size > 1 ? `${t.stack}.${t.layer}` : String(t.layer));
