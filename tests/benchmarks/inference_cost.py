"""What a sliced model costs when it runs, by form of residual adapter: time and memory as ratios, the dense model is 1.

    python tests/benchmarks/inference_cost.py

Random weights in the shapes of OPT-125M and of a LLaMA and a Phi as wide (768 wide, 12 layers), batch 1, 25%, float32,
the head's boundary whole. In random weights no two bases share more than they must, so the exact low-rank adapters have
the highest rank there is, D - k. Prefill is one pass over the prompt as `generate` does it: cache written, logits of
the last token of 128. Decoding is `evaluation.step_seconds`. In every round each variant runs once; a ratio is taken
within its round, and the median of the rounds counts. Memory is that of the parameters.
"""

import argparse
import copy
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PhiConfig

import minislice
from minislice.adapters import FORMS
from minislice.architecture.network import inference
from minislice.measuring.cost import size_in_bytes, step_seconds

WIDTH = {"hidden_size": 768, "num_attention_heads": 12}
SHAPES = {  # vocabularies of OPT, LLaMA-2 and Phi-2
    "OPT": OPTConfig(**WIDTH, ffn_dim=3072, word_embed_proj_dim=768, vocab_size=50272),
    "LLaMA": LlamaConfig(**WIDTH, intermediate_size=2048, vocab_size=32000),
    "Phi": PhiConfig(**WIDTH, intermediate_size=3072, vocab_size=51200),
}


def prefill_seconds(model, prompt) -> float:
    with inference(model):
        began = time.perf_counter()
        model(input_ids=prompt, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - began


def variants(config, layers: int) -> dict:
    """The dense model, and a copy of it in every adapter form."""
    torch.manual_seed(0)
    config.num_hidden_layers = layers
    models = {"dense": AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()}
    tokens = torch.randint(config.vocab_size, (8, 128))
    for form in FORMS:
        models[form] = minislice.slice_model(copy.deepcopy(models["dense"]), tokens, slicing=0.25, adapter=form)
    return models


def measure(models: dict, rounds: int, steps: int) -> dict:
    """Ratios by variant, and the highest rank of its adapters."""
    prompt = torch.randint(models["dense"].config.vocab_size, (1, 128))
    clocks = {
        "prefill": lambda model: prefill_seconds(model, prompt),
        "decoding": lambda model: step_seconds(model, length=steps),
    }
    result = {name: {} for name in models}
    for what, clock in clocks.items():
        seconds = {name: [] for name in models}
        for _ in range(rounds + 1):
            for name, model in models.items():
                seconds[name].append(clock(model))
        for name, measured in seconds.items():  # the first round warms up
            ratios = [own / dense for own, dense in zip(measured[1:], seconds["dense"][1:], strict=True)]
            result[name][what] = statistics.median(ratios)
            result[name][f"{what}, ms"] = 1000 * statistics.median(measured[1:])
    for name, model in models.items():
        result[name]["memory"] = size_in_bytes(model) / size_in_bytes(models["dense"])
        result[name]["rank"] = 0 if name == "dense" else max(model.slicing.ranks)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="tokens decoded in a round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {
        shape: measure(variants(config, arguments.layers), arguments.rounds, arguments.steps)
        for shape, config in SHAPES.items()
    }
    if arguments.json:
        print(json.dumps(results))
        return
    print("| model, 25% | | " + " | ".join(["dense", *FORMS]) + " |\n" + "|---" * (len(FORMS) + 3) + "|")
    for shape, result in results.items():
        for what in ("prefill", "decoding", "memory"):
            print(f"| {shape} | {what} | " + " | ".join(f"{row[what]:.2f}" for row in result.values()) + " |")


if __name__ == "__main__":
    main()
