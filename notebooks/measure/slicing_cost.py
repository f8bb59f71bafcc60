"""What slicing costs over one bare forward pass of the layers, and what memory it needs above the model.

    python notebooks/measure/slicing_cost.py

An OPT-125M-shaped model with random weights (768 wide, 12 layers), 16 x 512 calibration tokens, 25%, float32. The bare
forward pass runs transformers' own layers on the same batches. Then the same with what lies beyond the paper: W_out
repaired, a quarter of the neurons deleted, both. Times are ratios within one run: the passes alternate, and the median
of the rounds counts.
"""

import copy
import json
import re
import statistics
import time
from pathlib import Path

import torch
from common import cost_parser
from phases import timed
from transformers import AutoModelForCausalLM, OPTConfig

import minislice
from minislice.architecture.network import inference, network
from minislice.corpus.batches import token_batches

SHAPE = OPTConfig(hidden_size=768, ffn_dim=3072, num_hidden_layers=12, num_attention_heads=12, word_embed_proj_dim=768)

BEYOND = {"repair": {"repair": True}, "neurons": {"neurons": 0.25}, "both": {"repair": True, "neurons": 0.25}}
SMALL = OPTConfig(
    vocab_size=512, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=64
)


def forward_seconds(model, tokens, batch_size: int) -> float:
    """One pass of the decoder layers over all batches, without embeddings and head."""
    net = network(model)
    with inference(model):
        embedded = [net.embed(batch.ids, batch.mask) for batch in token_batches(model, tokens, None, batch_size)]
        began = time.perf_counter()
        for x, contexts in embedded:
            for layer, context in zip(net.decoder.layers, contexts, strict=True):
                x = layer(x, **context)
        return time.perf_counter() - began


def resident_mib(peak: bool) -> float:
    """Memory of this process, from Linux's /proc: now, or the most since the last `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s+(\d+)", status)[1]) / 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def slicing(model, tokens, batch_size: int, **options) -> tuple[float, dict[str, float], float]:
    """Of slicing a copy: its seconds, those of its phases, and the memory that it needs above the loaded model, MiB."""
    working = minislice.fuse(copy.deepcopy(model))
    reset_peak()
    before = resident_mib(peak=False)
    began = time.perf_counter()
    with timed() as seconds:
        minislice.slice_model(working, tokens, slicing=0.25, head="own", batch_size=batch_size, **options)
    return time.perf_counter() - began, seconds, resident_mib(peak=True) - before


def main() -> None:
    parser = cost_parser(__doc__, threads=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16, help="of 512 tokens (default: 16)")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="a tiny shape, to try the script")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = SMALL if arguments.small else SHAPE
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
    tokens = torch.randint(shape.vocab_size, (arguments.samples, 512))
    forward_seconds(model, tokens[:2], arguments.batch_size)  # warm up
    ratios, phases, memory, beyond = [], [], [], {name: [] for name in BEYOND}
    for _ in range(arguments.rounds):
        forward = forward_seconds(model, tokens, arguments.batch_size)
        total, seconds, peak = slicing(model, tokens, arguments.batch_size)
        ratios.append(total / forward)
        phases.append({phase: of_phase / forward for phase, of_phase in seconds.items()})
        phases[-1]["other"] = ratios[-1] - sum(phases[-1].values())
        memory.append(peak)
        for name, options in BEYOND.items():
            other, _, peak = slicing(model, tokens, arguments.batch_size, **options)
            beyond[name].append((other / total, peak))
    result = {
        "slicing / forward": statistics.median(ratios),
        "by phase": {phase: statistics.median(p[phase] for p in phases) for phase in phases[0]},
        "peak memory above the loaded model, MiB": max(memory),
        "beyond / slicing": {name: statistics.median(ratio for ratio, _ in found) for name, found in beyond.items()},
        "beyond, peak memory, MiB": {name: max(peak for _, peak in found) for name, found in beyond.items()},
        "signal of the calibration set at full width, MiB": tokens.numel() * shape.hidden_size * 4 / 2**20,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"slicing takes {result['slicing / forward']:.2f} x one bare forward pass of the layers; of which")
    for phase, ratio in result["by phase"].items():
        print(f"  {phase:20s} {ratio:.2f}")
    print(f"peak memory above the loaded model: {max(memory):.0f} MiB")
    print(f"(the signal at full width: {result['signal of the calibration set at full width, MiB']:.0f} MiB)")
    for name, ratio in result["beyond / slicing"].items():
        peak = result["beyond, peak memory, MiB"][name]
        print(f"with {name}: {ratio:.2f} x as long as slicing alone, peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
