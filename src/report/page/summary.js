/* The verdict, the facts under it, and the plan. */

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function headline() {
  const s = data.summary;
  if (SPECTRUM) {
    const of = s.of === "weights" ? "the weights" : "the change";
    return [`${whole(s.measured)} of ${whole(s.matrices)} matrices have a spectrum of ${of}`, `Their effective rank is ${share(s.effective_rank_share, 1)} of the largest, as a mean.`];
  }
  if (OVERLAP) {
    const agreed = none(s.sign_agreement) ? "have no element in common" : `agree in sign on ${share(s.sign_agreement, 1)} of what both changed`;
    return [`The two fine-tunes ${agreed}`, "Low agreement is where a merge of the two cancels what they learned."];
  }
  const rest = `${share(s.changed, s.elements)} of ${whole(s.elements)} elements changed.`;
  // "plan holds: …"
  if (data.plan) return [data.plan.holds ? "The plan holds" : "The plan is violated", `${data.verdict[0].replace(/^.*?: /, "")}.`];
  if (data.identical) return ["Bit-identical", `All ${whole(s.tensors)} tensors have the same type, shape and bytes on both sides.`];
  const compared = s.compared ? `${whole(s.compared)} of ${whole(s.tensors)} tensors could be compared.` : "No tensor has one name and one shape on both sides.";
  if (data.unlike) return [capital(data.unlike.split(":")[0]), `${capital(data.unlike.split(": ")[1])}. ${compared}`];
  if (s.compared === 0) return ["Nothing could be compared", compared];
  const same = s.statuses.identical ?? 0;
  const others = same ? `The other ${counted(same, "tensor is", "tensors are")} bit-identical.` : "";
  return [`${whole(s.differing)} of ${whole(s.tensors)} tensors changed`, `${rest} ${others}`];
}

function pair(list, name, value, note) {
  const box = make("div");
  const dd = make("dd", value);
  if (note) dd.append(make("small", note));
  box.append(make("dt", name), dd);
  $(list).append(box);
  return box;
}

function verdict() {
  const [title, sentence] = headline();
  const names = OVERLAP ? `${nameOf(data.a)} and ${nameOf(data.b)}, over ${nameOf(data.base)}` : `${nameOf(data.summary.a)} → ${nameOf(data.summary.b)}`;
  document.title = `${names}: ${safe(title)}`;
  $("names").textContent = names;
  $("verdict-title").textContent = safe(title);
  $("sentence").textContent = safe(sentence);
  const bad = (data.failed ?? []).length > 0;
  $("verdict").classList.toggle("bad", bad);
  $("verdict").classList.toggle("good", !bad && (data.identical === true || (data.verdict ?? []).length > 0));
  for (const rule of data.advice ?? []) $("checks").append(make("li", `${safe(rule.text)}. (${rule.source})`, { class: "advice" }));
  if (data.recipe) $("checks").append(make("li"));
  if (data.recipe) $("checks").lastChild.append(make("pre", safe(data.recipe).replaceAll("\\u{a}", "\n"), { tabindex: "0" }));
  for (const line of (data.verdict ?? []).slice(data.plan ? 1 : 0)) $("checks").append(make("li", safe(line)));
  const failures = data.failed ?? [];
  for (const failure of failures.slice(0, 5)) $("checks").append(make("li", `${failure.name ? safe(failure.name) + ": " : ""}${safe(failure.what)}`, { class: "failure" }));
  if (failures.length > 5) $("checks").append(make("li", `and ${whole(failures.length - 5)} more`, { class: "failure" }));
  facts();
  const paths = OVERLAP ? [["base", data.base], ["first", data.a], ["second", data.b]] : [["base", data.summary.a], ["tuned", data.summary.b]];
  for (const [name, path] of paths) {
    const dd = make("dd");
    dd.append(make("code", safe(path)));
    $("paths").append(make("dt", name), dd);
  }
}

function facts() {
  const s = data.summary;
  if (SPECTRUM) {
    pair("facts", "Effective rank", share(s.effective_rank_share, 1), "of the largest, mean");
    pair("facts", "Stable rank", small(s.stable_rank), "Σσ² / σ1², mean");
    pair("more-facts", "Rank of 90 % of the energy", share(s.rank_90_share, 1), "of the largest, mean");
    pair("more-facts", "Rank of 99 % of the energy", share(s.rank_99_share, 1), "of the largest, mean");
    if (!none(s.rounding_share)) pair("more-facts", "Energy that rounding gives", share(Math.min(s.rounding_share, 1), 1));
    if (!none(s.above_rounding_share)) pair("more-facts", "Singular values above rounding", share(s.above_rounding_share, 1));
    return;
  }
  if (ADVICE) {
    pair("facts", "Top conflict", share(s.top_conflict, 1), "of the largest fifth of either");
    pair("more-facts", "‖τ‖ of the first / second", small(s.norm_ratio));
  }
  if (OVERLAP) {
    pair("facts", "Changed by both", share(s.overlap, 1), "of what either changed");
    pair("facts", "Cosine of the task vectors", small(s.cosine));
    pair("more-facts", "Elements", whole(s.elements));
    pair("more-facts", "Changed by the first", share(s.changed_1, s.elements));
    pair("more-facts", "Changed by the second", share(s.changed_2, s.elements));
    pair("more-facts", "L2 of the first", small(s.l2_1));
    pair("more-facts", "L2 of the second", small(s.l2_2));
    return;
  }
  if (data.identical) {
    pair("more-facts", "Tensors", whole(s.tensors));
    pair("more-facts", "Elements", whole(s.elements));
  } else if (s.compared > 0) {
    pair("facts", "Elements changed", share(s.changed, s.elements), `${whole(s.changed)} of ${whole(s.elements)}`);
    pair("facts", "Relative L2", small(s.rel_l2), "‖tuned − base‖ / ‖base‖");
    pair("more-facts", "Tensors that differ", `${whole(s.differing)} of ${whole(s.tensors)}`);
    pair("more-facts", "Largest |δ|", small(s.max_abs), safe(s.max_abs_tensor ?? ""));
    pair("more-facts", "1 − cosine", small(s.cosine_distance));
    pair("more-facts", "Sign flips", whole(s.sign_flips));
  }
  if (s.compared < s.tensors) pair("more-facts", "Not compared", counted(s.tensors - s.compared, "tensor", "tensors"));
  const broken = pair("more-facts", "NaN or infinite", s.compared ? `${whole(s.nonfinite_a)} → ${whole(s.nonfinite_b)}` : "–", "in base → in tuned");
  if (s.nonfinite_b > 0) broken.classList.add("failure");
}

/** Frozen, trained and unmoved, each a button that filters the table. */
function plan() {
  if (!data.plan) return;
  $("plan").hidden = false;
  const count = (state) => data.tensors.filter((t) => stateOf(t) === state).length;
  const parts = [["frozen", "Frozen", "the bytes of the base"], ["moved", "Trained", "moved"], ["unmoved", "Unmoved", "trainable, with the bytes of the base"], ["violation", "Violations", "frozen, but moved"]];
  for (const [state, title, note] of parts) {
    const n = count(state);
    if (state === "violation" && n === 0) continue;
    const button = make("button", undefined, { type: "button", class: `part ${state}` });
    button.append(make("i", undefined, { class: `swatch ${state}` }), make("strong", whole(n)), make("span", title), make("small", note));
    button.addEventListener("click", () => {
      $("state").value = n ? state : "";
      list();
      $("tensors-title").scrollIntoView({ block: "start" });
    });
    $("plan-parts").append(button);
  }
}
