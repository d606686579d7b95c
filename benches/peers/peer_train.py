"""Training steps with transformers and AdamW, the tensors of a plan trained.

usage: peer_train.py MODEL --rows FILE --plan FILE --batch N

Prints a JSON line: the seconds and the loss of each step.
"""
import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM

arguments = argparse.ArgumentParser()
arguments.add_argument("model")
arguments.add_argument("--rows", required=True)
arguments.add_argument("--plan", required=True)
arguments.add_argument("--batch", type=int, required=True)
options = arguments.parse_args()
torch.manual_seed(0)
torch.set_num_threads(2)
model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
model.train()
model.config.use_cache = False
with open(options.plan) as f:
    frozen = set(json.load(f)["frozen"])
for name, parameter in model.named_parameters():
    parameter.requires_grad_(name not in frozen)
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.0, fused=True)
with open(options.rows) as f:
    rows = [json.loads(line)["input_ids"] for line in f]
seconds, losses = [], []
for start in range(0, len(rows), options.batch):
    ids = torch.tensor(rows[start:start + options.batch])
    begin = time.perf_counter()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.item())
    seconds.append(time.perf_counter() - begin)
print(json.dumps({"seconds": seconds, "losses": losses}))
