"""The report of gpu.py as Markdown."""


def percent(x):
    return "" if x is None else f"{x:.0%}"


def gigabytes(x):
    return "" if x is None else f"{x / 1e9:.2f} GB"


def rows_of(columns, rows):
    head = "| " + " | ".join(columns) + " |"
    return ["", head, "|" + "---|" * len(columns), *("| " + " | ".join(map(str, row)) + " |" for row in rows)]


def head(found):
    gpu = found.get("gpu", {"name": "no GPU", "compute_capability": "none"})
    lines = [f"# {gpu['name']}, compute capability {gpu['compute_capability']}", ""]
    if found["tiny"]:
        lines += ["Tiny models: this run shows that the benchmark works, and says nothing of speed.", ""]
    if found["wrong"]:
        lines += [f"**Stopped at a wrong number:** {found['wrong'].splitlines()[0]}", ""]
    lines.append(f"compute-sanitizer: {found['sanitizer']}. Budget: {found['budget']:.0f} s.")
    lines += rows_of(["section", "seconds", "state"],
                     [(s["name"], f"{s['seconds']:.0f}", s["state"]) for s in found["sections"]])
    if found["missing"]:
        lines += ["", "Not in this build:", ""] + [f"- {m['name']}: {m['why']}" for m in found["missing"]]
    return lines


def right(found):
    lines = ["", "## Against the CPU"]
    if found["families"]:
        worst = {kind: max(found["families"], key=lambda family: family[kind]) for kind in ["f32", "bf16"]}
        lines += ["", f"{len(found['families'])} models of `fixtures/llama`, three steps: f32 within {worst['f32']['f32']:.1e} "
                  f"({worst['f32']['name']}), bf16 within {worst['bf16']['bf16']:.1e} ({worst['bf16']['name']})."]
    lines += rows_of(["trained", "options", "type", "beside", "losses apart", "at most", "first loss", "last loss"],
                     [(c["name"], f"`{c['flags']}`" if c["flags"] else "", c["type"], c["beside"], f"{c['gap']:.1e}",
                       f"{c['bound']:.0e}", f"{c['first']:.4f}", f"{c['last']:.4f}") for c in found["choices"]])
    return lines


def speed(found):
    lines = ["", "## Speed in bf16"]
    if "bandwidth" in found:
        bandwidth = found["bandwidth"]
        lines += ["", f"Copy {bandwidth['copy']:.0f} GB/s, masked AdamW {bandwidth['adamw']:.0f} GB/s: {bandwidth['share']:.0%}."]

    def row(s):
        peak = found.get("peak_gflops")
        rate = s.get("gflops")
        memory = gigabytes(s.get("peak_bytes", s.get("seen_bytes")))
        planned = gigabytes(s["planned_bytes"]) if "planned_bytes" in s else s.get("planned") or ""
        return (s["model"], s["trained"], f"`{s['flags']}`" if s["flags"] else "", f"{s['batch']} x {s['seq']}",
                f"{s['tokens_per_second']:.0f}", s.get("anchor", ""), percent(s.get("of_anchor")),
                "" if rate is None else f"{rate:.0f}", percent(rate / s["gemm_gflops"]) if rate else "",
                percent(rate / peak) if rate and peak else "", memory, planned,
                f"{s['loss_gap']:.1e}" if "loss_gap" in s else "")

    lines += rows_of(["model", "trained", "options", "tokens", "tokens/s", "llmq, full, one H100", "of it", "GFLOP/s", "of gemm",
                      "of the dense bf16 peak", "memory", "planned", "losses beside stored"], map(row, found["speeds"]))
    lines += ["", "Memory: what the program allocated, or all that the system saw in use where a run was ended before its end."]
    lines += rows_of(["model", "tokens a step", "full", "half", "half / full", "predicted by FLOP"],
                     [(r["model"], r["tokens"], f"{r['full_seconds'] * 1e3:.1f} ms", f"{r['half_seconds'] * 1e3:.1f} ms",
                       f"{r['measured']:.2f}", "" if r["predicted"] is None else f"{r['predicted']:.2f}")
                      for r in found["ratios"]])
    ours = {(s["model"], s["trained"]): s for s in found["speeds"]}
    lines += rows_of(["model", "trained", "PyTorch tokens/s", "ours / PyTorch", "PyTorch memory", "compiled"],
                     [(p["model"], p["trained"], f"{p['tokens_per_second']:.0f}",
                       f"{ours[p['model'], p['trained']]['tokens_per_second'] / p['tokens_per_second']:.2f}",
                       gigabytes(p["peak"]), p["compiled"]) for p in found["pytorch"] if (p["model"], p["trained"]) in ours])
    return lines


def report(found):
    """The numbers as Markdown."""
    lines = head(found)
    if found["families"] or found["choices"]:
        lines += right(found)
    if found["speeds"] or found["ratios"]:
        lines += speed(found)
    lines += rows_of(["operation", "type", "error", "at most"],
                     [(e["operation"], e["type"], e["error"], e["bound"]) for e in found.get("operations", [])])
    return "\n".join(lines) + "\n"
