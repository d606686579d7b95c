"""What people write today to see of which rank a fine-tune is: torch.linalg.svdvals of every matrix of the change.

usage: peer_spectrum.py BASE TUNED [f32|f64] [THREADS] [ONLY]      (ONLY: a part of the names of tensors)
"""
import glob
import json
import os
import sys

import torch
from safetensors import safe_open


def tensors(directory):
    out = {}
    for path in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        file = safe_open(path, "pt")
        out.update({name: file for name in file.keys()})
    return out


base, tuned = tensors(sys.argv[1]), tensors(sys.argv[2])
dtype = torch.float64 if "f64" in sys.argv[3:4] else torch.float32
torch.set_num_threads(int(sys.argv[4]) if len(sys.argv) > 4 else os.cpu_count())
only = sys.argv[5] if len(sys.argv) > 5 else ""
found = {}
for name, file in tuned.items():
    if only not in name:
        continue
    weight = file.get_tensor(name)
    if weight.dim() != 2:
        continue
    change = weight.to(dtype) - base[name].get_tensor(name).to(dtype)
    if not change.any():
        continue
    sigma = torch.linalg.svdvals(change)
    p = sigma / sigma.sum()
    p = p[p > 0]
    found[name] = torch.exp(-(p * p.log()).sum()).item()
print(json.dumps(found))
