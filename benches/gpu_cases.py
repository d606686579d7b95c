"""What gpu.py runs: ways to train, models whose speed is measured, bounds.

A case of CHOICES trains the same rows on the GPU and on the CPU, or twice on the GPU, and compares the losses of all steps.
"""
from typing import NamedTuple

# Largest difference of a loss from that of the CPU, as a share of the first.
F32, BF16 = 1e-4, 2e-2
# Where a sign or a draw that falls to the other side moves an element by a whole step.
SIGNS = 1e-3
# Eight-bit floats: the CPU rounds frozen weights alone, a GPU what they are multiplied with too.
EIGHT_BITS = 5e-2


class Case(NamedTuple):
    """One way to train."""
    name: str
    # Options on the GPU; the CPU, or the other run on the GPU, gets those of `beside`.
    flags: tuple
    bound: float
    # None: the same.
    beside: tuple = None
    # "cpu", or "cuda" for a second run on the GPU; a bound of 0 asks for the same losses.
    than: str = "cpu"
    dtype: str = "float32"
    model: str = "dense"
    rows: str = "tokens"


# Fixtures that are refused on a GPU: rotary embeddings that depend on the length, packed experts with attention sinks.
CPU_ONLY = ["llama-dynamic", "phi4-longrope-long", "gpt-oss", "gpt-oss-mxfp4"]

CHOICES = [
    Case("full", ("--ratio", "1"), F32),
    Case("half", (), F32),
    Case("half in bfloat16", (), BF16, dtype="bfloat16"),
    Case("the same again", (), 0.0, than="cuda", dtype="bfloat16"),
    Case("elements", ("--granularity", "element"), F32),
    Case("accumulation", ("--gradient-accumulation-steps", "2"), F32),
    Case("packing", ("--packing", "--max-length", "128"), F32),
    Case("recompute full", ("--recompute", "full"), F32),
    Case("adamw8bit", ("--optimizer", "adamw8bit"), F32),
    Case("adafactor", ("--optimizer", "adafactor", "--learning-rate", "1e-2"), F32),
    Case("lion", ("--optimizer", "lion", "--learning-rate", "1e-3"), SIGNS),
    Case("sgd", ("--optimizer", "sgd", "--momentum", "0.9", "--learning-rate", "1e-1"), F32),
    Case("master none", ("--master", "none"), BF16, dtype="bfloat16"),
    Case("master none with adamw8bit", ("--master", "none", "--optimizer", "adamw8bit"), BF16, dtype="bfloat16"),
    Case("optimizer in backward", ("--optimizer-in-backward", "--max-grad-norm", "0"), F32),
    Case("gradients in bfloat16", ("--gradient-dtype", "bfloat16"), BF16, beside=(), dtype="bfloat16"),
    Case("offload host", ("--offload", "host"), 0.0, beside=(), than="cuda", dtype="bfloat16"),
    Case("frozen in float8", ("--frozen-dtype", "float8"), EIGHT_BITS, dtype="bfloat16"),
    Case("frozen in float8 beside stored", ("--frozen-dtype", "float8"), EIGHT_BITS, beside=(), than="cuda", dtype="bfloat16"),
    Case("frozen in float8 again", ("--frozen-dtype", "float8"), 0.0, than="cuda", dtype="bfloat16"),
    Case("dpo", ("--objective", "dpo", "--beta", "0.5"), F32, rows="pairs"),
    Case("simpo", ("--objective", "simpo"), F32, rows="pairs"),
    Case("mixture of experts", (), F32, model="mixture"),
    Case("mixture of experts in bfloat16", (), BF16, model="mixture", dtype="bfloat16"),
    Case("mixture of experts frozen in float8", ("--frozen-dtype", "float8"), EIGHT_BITS, model="mixture", dtype="bfloat16"),
    Case("mixture of experts with dpo", ("--objective", "dpo", "--beta", "0.5"), F32, model="mixture", rows="pairs"),
]


class Speed(NamedTuple):
    """Steps whose time is measured."""
    model: str
    name: str
    ratio: str
    # Tokens of a row, rows of a micro-batch, steps.
    seq: int
    batch: int
    steps: int
    flags: tuple = ()
    # False: the run is ended once its steps are taken, without writing a checkpoint.
    whole: bool = True


LITTLE = ("--master", "none", "--optimizer", "adamw8bit", "--gradient-dtype", "bfloat16")
FLOAT8 = ("--frozen-dtype", "float8")

SPEEDS = [
    Speed("qwen2.5-0.5b", "full", "1", 2048, 8, 12),
    Speed("qwen2.5-0.5b", "half", "0.5", 2048, 8, 12),
    Speed("qwen2.5-1.5b", "full", "1", 2048, 8, 10),
    Speed("qwen2.5-1.5b", "half", "0.5", 2048, 8, 10, whole=False),
    Speed("qwen2.5-1.5b", "half, frozen in float8", "0.5", 2048, 8, 10, FLOAT8),
    Speed("qwen2.5-7b", "full", "1", 2048, 4, 6, LITTLE, whole=False),
    Speed("qwen2.5-7b", "half", "0.5", 2048, 4, 6, LITTLE, whole=False),
    Speed("qwen2.5-7b", "half, frozen in float8", "0.5", 2048, 4, 6, LITTLE + FLOAT8, whole=False),
]
TINY_SPEEDS = [
    Speed("tiny", "full", "1", 16, 2, 4),
    Speed("tiny", "half", "0.5", 16, 2, 4, whole=False),
    Speed("tiny", "half, frozen in float8", "0.5", 16, 2, 4, FLOAT8),
]
# Tokens per second of full training in bfloat16 on one H100, by llmq.
ANCHORS = {"qwen2.5-0.5b": 149_000, "qwen2.5-1.5b": 59_000, "qwen2.5-7b": 14_000}
# Dense bf16 peak, TFLOP/s, of the data sheets (SXM).
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "B200": 2250}

# The models of the tables above, and the tokens of a step at which half and full are compared.
FULL_SIZE = {"dense": "small", "mixture": "small-mixture", "ratios": "qwen2.5-0.5b", "tokens": [1024, 8192, 65536], "seq": 2048,
             "speeds": SPEEDS, "steps": 9, "rates": {"tokens": "1e-3", "pairs": "1e-4"}}
TINY_SIZE = {"dense": "tiny", "mixture": "tiny-mixture", "ratios": "tiny", "tokens": [16, 32], "seq": 16,
             "speeds": TINY_SPEEDS, "steps": 3, "rates": {"tokens": "3e-3", "pairs": "1e-3"}}
