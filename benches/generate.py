"""Times `generate` and its peers; called by benches/generate.sh.

usage: generate.py CKPT TOKENS RUNS TARGET      (TARGET has hft-surgery and examples/read_map)

Seconds per token are those of a long run less those of a run of one token, over the tokens between them: loading the model and reading
the prompt are in both.
"""
import glob
import json
import os
import subprocess
import sys
import time

PROMPT = "Once upon a time there was a"


def seconds(command):
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def drop(paths):
    """Lets go of the cached pages of these files."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def report(name, rate, size, bandwidth, note=""):
    reached = rate * size / 1e9
    print(f"{name:<34}{rate:>8.1f} tokens/s  {reached:>6.1f} GB/s  {100 * reached / bandwidth:>4.0f} % of the bandwidth{note}", flush=True)


def ours(binary, model, tokens, runs, weights, size, bandwidth):
    def run(count):
        return [binary, "generate", "--model", model, "--raw", "--prompt", PROMPT, "--max-new-tokens", str(count), "--quiet"]

    short = min(seconds(run(1)) for _ in range(runs))
    long = min(seconds(run(tokens + 1)) for _ in range(runs))
    report("hft-surgery, bf16 mapped", tokens / (long - short), size, bandwidth, f"  (start and prompt {short:.2f} s)")
    drop(weights)
    print(f"{'hft-surgery, file not cached':<34}{seconds(run(tokens + 1)):>8.2f} s for {tokens + 1} tokens", flush=True)


def transformers(model, tokens, runs, weights, bandwidth):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    ids = AutoTokenizer.from_pretrained(model)(PROMPT, return_tensors="pt")["input_ids"]
    for dtype in [torch.bfloat16, torch.float32]:
        net = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        size = sum(p.numel() * p.element_size() for p in net.parameters())

        def run(count):
            start = time.perf_counter()
            net.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count, max_new_tokens=count)
            return time.perf_counter() - start

        run(2)
        short, long = min(run(1) for _ in range(runs)), min(run(tokens + 1) for _ in range(runs))
        report(f"transformers, {str(dtype).removeprefix('torch.')}", tokens / (long - short), size, bandwidth)


def gguf(model, path):
    """The checkpoint as GGUF in bf16, by the names of llama.cpp."""
    import gguf
    import numpy
    import torch
    from safetensors import safe_open

    config = json.load(open(os.path.join(model, "config.json")))
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])

    def interleaved(weight, count):
        """The rows of each head in the order in which llama.cpp rotates them."""
        return weight.reshape(count, 2, weight.shape[0] // count // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)

    for shard in sorted(glob.glob(os.path.join(model, "*.safetensors"))):
        with safe_open(shard, "pt") as file:
            for name in file.keys():
                weight = file.get_tensor(name)
                if "q_proj" in name or "k_proj" in name:
                    weight = interleaved(weight, heads if "q_proj" in name else kv_heads)
                to = names.get_name(name, try_suffixes=(".weight",))
                if weight.ndim == 1:
                    writer.add_tensor(to, weight.to(torch.float32).numpy())
                else:
                    bits = weight.to(torch.bfloat16).contiguous().view(torch.uint16).numpy().view(numpy.uint8)
                    writer.add_tensor(to, bits, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama_cpp(model, tokens, runs, size, bandwidth):
    try:
        import llama_cpp
    except ImportError:
        print("llama-cpp-python is not installed")
        return
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.gguf")
        gguf(model, path)
        threads = int(os.environ["OMP_NUM_THREADS"])
        net = llama_cpp.Llama(path, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)

        def run(count):
            net.reset()
            start = time.perf_counter()
            for index, _ in enumerate(net.generate([1, 2, 3, 4, 5, 6, 7], temp=0.0, reset=True)):
                if index + 1 >= count:
                    break
            return time.perf_counter() - start

        run(2)
        short, long = min(run(1) for _ in range(runs)), min(run(tokens + 1) for _ in range(runs))
        report("llama-cpp-python, bf16", tokens / (long - short), size, bandwidth)


def main():
    model, tokens, runs, target = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    weights = sorted(glob.glob(os.path.join(model, "*.safetensors")))
    size = sum(os.path.getsize(path) for path in weights)
    config = json.load(open(os.path.join(model, "config.json")))
    if not config.get("tie_word_embeddings"):
        # Of an embedding that is no head, each token reads one row.
        size -= 2 * config["vocab_size"] * config["hidden_size"]
    read = [os.path.join(target, "examples", "read_map"), "bandwidth", model]
    bandwidth = max(float(subprocess.run(read, check=True, capture_output=True, text=True).stdout) for _ in range(3))
    print(f"{size / 1e9:.3f} GB of weights per token; the machine reads {bandwidth:.1f} GB/s of the file, mapped and touched before", flush=True)
    ours(os.path.join(target, "hft-surgery"), model, tokens, runs, weights, size, bandwidth)
    transformers(model, tokens, runs, weights, bandwidth)
    llama_cpp(model, tokens, runs, size, bandwidth)


if __name__ == "__main__":
    main()
