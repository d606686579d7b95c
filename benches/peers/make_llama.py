"""Make a random Llama checkpoint in bf16, and rows of random token ids, with numpy alone.

usage: make_llama.py OUT [7b|tiny] [--layers N] [--shard-mb N] [--rows N] [--length N] [--seed N]

Writes OUT/model, shard by shard and one tensor in memory at a time, and OUT/rows.jsonl. The values of a matrix are those of
N(0, 0.02): random words of 16 bits choose among the 65536 quantiles of that distribution, rounded to bf16. The weights of norms
are 1. Whole checkpoints are left as they are.
"""
import argparse
import json
import os
import statistics

import numpy as np

SHAPES = {
    #       hidden, intermediate, layers, heads, vocabulary
    "7b": (4096, 11008, 32, 32, 32000),  # Llama-2-7B
    "tiny": (256, 688, 4, 4, 32000),
}
WORDS = 1 << 16


def shapes(hidden, inner, layers, heads, vocab):
    yield "model.embed_tokens.weight", (vocab, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        yield at + "input_layernorm.weight", (hidden,)
        for name in ("q", "k", "v", "o"):
            yield f"{at}self_attn.{name}_proj.weight", (hidden, hidden)
        yield at + "post_attention_layernorm.weight", (hidden,)
        yield at + "mlp.gate_proj.weight", (inner, hidden)
        yield at + "mlp.up_proj.weight", (inner, hidden)
        yield at + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def config(hidden, inner, layers, heads, vocab):
    return dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=hidden, intermediate_size=inner,
                num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocab,
                rms_norm_eps=1e-5, rope_theta=10000.0, max_position_embeddings=4096, hidden_act="silu",
                tie_word_embeddings=False, attention_bias=False, mlp_bias=False, initializer_range=0.02,
                bos_token_id=1, eos_token_id=2, torch_dtype="bfloat16", use_cache=True, pretraining_tp=1)


def bf16(values):
    """The upper halves of float32, rounded to the nearest even."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def quantiles():
    normal = statistics.NormalDist(0.0, 0.02)
    return bf16([normal.inv_cdf((i + 0.5) / WORDS) for i in range(WORDS)])


def values(shape, table, bits):
    """The values of a tensor in pieces of at most 32 MiB."""
    left = int(np.prod(shape))
    while left:
        n = min(left, 1 << 24)
        if len(shape) == 1:
            yield np.full(n, bf16([1.0])[0])
        else:
            yield table[bits.random_raw((n + 3) // 4).view(np.uint16)[:n]]
        left -= n


def write_shard(path, tensors, table, bits):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, shape in tensors:
            for piece in values(shape, table, bits):
                piece.tofile(f)


def write_model(out, shape, limit, seed):
    shards, size = [[]], 0
    for name, of in shapes(*shape):
        n = 2 * int(np.prod(of))
        if shards[-1] and size + n > limit:
            shards.append([])
            size = 0
        shards[-1].append((name, of))
        size += n
    os.makedirs(out, exist_ok=True)
    table, bits, weight_map, total = quantiles(), np.random.SFC64(seed), {}, 0
    for i, tensors in enumerate(shards):
        name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(f"{out}/{name}", tensors, table, bits)
        weight_map.update((tensor, name) for tensor, _ in tensors)
        total += sum(2 * int(np.prod(of)) for _, of in tensors)
        print(f"{name}: {len(tensors)} tensors", flush=True)
    with open(f"{out}/model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, f, indent=2)
    # Last: a checkpoint that has it is whole.
    with open(f"{out}/config.json", "w") as f:
        json.dump(config(*shape), f, indent=2)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("out")
    args.add_argument("shape", nargs="?", default="7b", choices=SHAPES)
    args.add_argument("--layers", type=int)
    args.add_argument("--shard-mb", type=int, default=2000)
    args.add_argument("--rows", type=int, default=3)
    args.add_argument("--length", type=int, default=512)
    args.add_argument("--seed", type=int, default=0)
    args = args.parse_args()
    hidden, inner, layers, heads, vocab = SHAPES[args.shape]
    shape = hidden, inner, args.layers or layers, heads, vocab
    model = f"{args.out}/model"
    if not os.path.exists(f"{model}/config.json"):
        write_model(model, shape, args.shard_mb * 10**6, args.seed)
    draws = np.random.default_rng(args.seed)
    with open(f"{args.out}/rows.jsonl", "w") as f:
        for _ in range(args.rows):
            f.write(json.dumps({"input_ids": draws.integers(0, vocab, args.length).tolist()}) + "\n")


main()
