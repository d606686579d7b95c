"""A copy of a checkpoint whose matrices of attention and MLPs have the values of their eight-bit codes, by PyTorch.

usage: float8_error.py MODEL OUT tensor|row

`train --frozen-dtype float8` computes with one scale for each tensor; the other way is to compare. Prints the relative error of the
matrices, mean and largest; `eval` on OUT measures what it does.
"""
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

model, out, each = sys.argv[1:]
tensors, errors = load_file(f"{model}/model.safetensors"), []
for name, stored in tensors.items():
    if "_proj.weight" not in name:
        continue
    w = stored.float()
    scale = (w.abs().max() if each == "tensor" else w.abs().amax(1, keepdim=True)) / 448
    rounded = (w * (1 / scale)).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale
    errors.append(((rounded - w).norm() / w.norm()).item())
    tensors[name] = rounded.contiguous()
os.makedirs(out, exist_ok=True)
for file in os.listdir(model):
    if not file.endswith(".safetensors"):
        shutil.copy(f"{model}/{file}", out)
save_file(tensors, f"{out}/model.safetensors", metadata={"format": "pt"})
print(f"{len(errors)} matrices: error {sum(errors) / len(errors):.4f} on average, at most {max(errors):.4f}")
