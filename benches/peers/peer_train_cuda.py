"""Training steps on a GPU with transformers and fused AdamW, in bf16 autocast with torch.compile, the tensors of a
plan trained.

usage: peer_train_cuda.py MODEL --rows FILE --plan FILE --batch N [--device cpu]

Prints a JSON line: the seconds and the loss of each step, the most memory that was allocated, and whether the model
was compiled or why not. --device cpu is to see that the script works.
"""
import argparse
import json
import time

import torch
import transformers

arguments = argparse.ArgumentParser()
arguments.add_argument("model")
arguments.add_argument("--rows", required=True)
arguments.add_argument("--plan", required=True)
arguments.add_argument("--batch", type=int, required=True)
arguments.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
options = arguments.parse_args()
on_gpu = options.device == "cuda"
with open(options.rows, encoding="utf-8") as f:
    rows = [json.loads(line)["input_ids"] for line in f]
with open(options.plan, encoding="utf-8") as f:
    frozen = set(json.load(f)["frozen"])


def steps(compiled):
    torch.manual_seed(0)
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch.set_float32_matmul_precision("high")
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(options.device)
    model.train()
    model.config.use_cache = False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.0, fused=on_gpu)
    run = torch.compile(model) if compiled else model
    seconds, losses = [], []
    for start in range(0, len(rows), options.batch):
        begin = time.perf_counter()
        ids = torch.tensor(rows[start:start + options.batch], device=options.device)
        with torch.autocast(options.device, dtype=torch.bfloat16):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return {"seconds": seconds, "losses": losses, "peak": torch.cuda.max_memory_allocated() if on_gpu else None}


try:
    found, compiled = steps(on_gpu), "yes" if on_gpu else "no: on the CPU"
except Exception as fault:  # what the compiler of this machine cannot do is reported, and the model runs without it
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    compiled = f"no: {lines[0]}"
    found = steps(False)
print(json.dumps({**found, "compiled": compiled, "torch": torch.__version__, "transformers": transformers.__version__}))
