/* Start. */

function theme(isDark) {
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  $("theme").textContent = isDark ? "Light" : "Dark";
  paint();
}

/** Marks the boxes whose content goes on to the right. */
function edges() {
  for (const box of document.querySelectorAll(".scroll")) {
    const rest = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.classList.toggle("goes-on", rest > 1);
    if (box.classList.contains("tall")) $("tensors-title").closest("section").classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
    if (box.scrollWidth > box.clientWidth + 1 && !box.querySelector("[tabindex]")) box.tabIndex = 0;
  }
}

for (const [name, [label]] of Object.entries(METRICS)) $("metric").append(make("option", label, { value: name }));
$("metric").addEventListener("change", paint);
$("state").append(make("option", "all", { value: "" }));
const present = new Set(data.tensors.map(stateOf));
for (const [state, label] of Object.entries(STATES)) if (present.has(state)) $("state").append(make("option", label, { value: state }));
$("state").parentElement.hidden = present.size < 2;
$("state").addEventListener("change", list);
$("search").addEventListener("input", list);
$("more").addEventListener("click", more);
if (documents.documents?.length > 1) {
  $("pairs").hidden = false;
  documents.documents.forEach((one, i) => $("pair").append(make("option", `${nameOf(one.a)}, ${nameOf(one.b)}`, { value: i })));
  $("pair").value = documents.documents.indexOf(data);
  $("pair").addEventListener("change", () => {
    location.hash = $("pair").value;
    location.reload();
  });
}
verdict();
plan();
drawMap();
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
theme(prefersDark.matches);
prefersDark.addEventListener("change", (event) => theme(event.matches));
$("theme").addEventListener("click", () => theme(!dark()));
detail("All tensors", data.summary, data.tensors);
categories();
heads();
list();
for (const box of document.querySelectorAll(".scroll")) box.addEventListener("scroll", edges, { passive: true });
new ResizeObserver(edges).observe(document.body);
edges();
