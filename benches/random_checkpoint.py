"""A checkpoint of random bfloat16 weights in the shape of a model, with nothing but Python.

usage: random_checkpoint.py OUT SHAPE

Matrices are normal with a deviation of 0.02, taken from one table of draws at shifting places; norms are 1, biases 0.
"""
import array
import json
import os
import random
import struct
import sys

# Family, hidden, intermediate, layers, heads, key/value heads, vocabulary, whether the head is the embedding.
SHAPES = {
    "tiny": ("llama", 64, 176, 2, 4, 2, 256, False),
    "tiny-mixture": ("mixtral", 64, 96, 2, 4, 2, 256, False),
    "small": ("llama", 512, 1376, 8, 8, 4, 32000, False),
    "small-mixture": ("mixtral", 256, 512, 4, 4, 2, 4096, False),
    "tinyllama-1.1b": ("llama", 2048, 5632, 22, 32, 4, 32000, False),
    "qwen2.5-0.5b": ("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "qwen2.5-1.5b": ("qwen2", 1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-7b": ("qwen2", 3584, 18944, 28, 28, 4, 152064, False),
}
EXPERTS = 4
# Elements of the table; a prime, so that no two rows of a matrix are alike.
TABLE = 1_000_003


def config(shape):
    family, hidden, inner, layers, heads, kv, vocab, tied = SHAPES[shape]
    found = {"model_type": family, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
             "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab, "rms_norm_eps": 1e-6,
             "rope_theta": 1e6, "max_position_embeddings": 32768, "hidden_act": "silu", "tie_word_embeddings": tied,
             "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
    if family == "mixtral":
        found |= {"num_local_experts": EXPERTS, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0,
                  "output_router_logits": False}
    return found


def tensors(shape):
    """Names, shapes and kinds."""
    family, hidden, inner, layers, heads, kv, vocab, tied = SHAPES[shape]
    kv = hidden // heads * kv
    yield "model.embed_tokens.weight", (vocab, hidden), "matrix"
    for i in range(layers):
        block = f"model.layers.{i}."
        for name, rows in [("q_proj", hidden), ("k_proj", kv), ("v_proj", kv)]:
            yield f"{block}self_attn.{name}.weight", (rows, hidden), "matrix"
            if family == "qwen2":
                yield f"{block}self_attn.{name}.bias", (rows,), "zeros"
        yield f"{block}self_attn.o_proj.weight", (hidden, hidden), "matrix"
        if family == "mixtral":
            yield f"{block}block_sparse_moe.gate.weight", (EXPERTS, hidden), "matrix"
            for e in range(EXPERTS):
                for name, size in [("w1", (inner, hidden)), ("w2", (hidden, inner)), ("w3", (inner, hidden))]:
                    yield f"{block}block_sparse_moe.experts.{e}.{name}.weight", size, "matrix"
        else:
            for name, size in [("gate_proj", (inner, hidden)), ("up_proj", (inner, hidden)), ("down_proj", (hidden, inner))]:
                yield f"{block}mlp.{name}.weight", size, "matrix"
        for name in ["input_layernorm", "post_attention_layernorm"]:
            yield f"{block}{name}.weight", (hidden,), "ones"
    yield "model.norm.weight", (hidden,), "ones"
    if not tied:
        yield "lm_head.weight", (vocab, hidden), "matrix"


def elements(size):
    count = 1
    for side in size:
        count *= side
    return count


def table():
    """Normal draws as bfloat16."""
    draw = random.Random(0)
    values = [struct.unpack("<I", struct.pack("<f", draw.gauss(0.0, 0.02)))[0] + 0x8000 >> 16 for _ in range(4096)]
    return array.array("H", draw.choices(values, k=TABLE)).tobytes()


def write(out, shape):
    os.makedirs(out, exist_ok=True)
    with open(f"{out}/config.json", "w", encoding="utf-8") as f:
        json.dump(config(shape), f, indent=1)
    entries, at, all_of = {"__metadata__": {"format": "pt"}}, 0, list(tensors(shape))
    for name, size, _ in all_of:
        end = at + 2 * elements(size)
        entries[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [at, end]}
        at = end
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    draws, offset = table(), 0
    with open(f"{out}/model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        for name, size, kind in all_of:
            left = 2 * elements(size)
            if kind != "matrix":
                f.write((b"\x80\x3f" if kind == "ones" else b"\0\0") * (left // 2))
                continue
            while left:
                piece = draws[offset:offset + left]
                f.write(piece)
                left -= len(piece)
                offset = (offset + len(piece)) % len(draws)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2])
