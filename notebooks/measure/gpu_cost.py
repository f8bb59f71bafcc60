"""Slicing large shapes with random weights on a GPU: seconds by phase, peak memory, and what the machine allows.

    python notebooks/measure/gpu_cost.py --shape llama-2-7b
    python notebooks/measure/gpu_cost.py --shape phi-2

25%, 128 x 2048 calibration tokens, bfloat16, the model on the card, the signal in pinned memory of the host. The bound
beside is arithmetic over the rates that this machine reaches, measured first: products of 4096 x 4096 matrices in
bfloat16 (forward pass, projection of the signal) and float32 (covariance, weights), and copies between host and card
(the signal, three times in and twice out for each block). It leaves out eigendecompositions.
"""

import time
from collections.abc import Callable

import torch
from common import SHAPES, cost_parser, report
from phases import timed
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture.network import network
from minislice.measuring.cost import flops_per_token, size_in_bytes
from minislice.measuring.provenance import hardware
from minislice.measuring.timing import peak_memory, seconds_of
from minislice.options import slice_width


def rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations a second that a product of two square matrices reaches."""
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / fastest(device, lambda: a @ a)


def bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second from the host's pinned memory to the device."""
    host = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    return size / fastest(device, lambda: host.to(device, non_blocking=True, copy=True))


def fastest(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of the fastest of six runs."""
    return min(seconds_of(work, device) for _ in range(6))


def bound_seconds(model, samples: int, seqlen: int, size: int) -> dict[str, float]:
    """The least time of each phase at the rates of this machine, for the dense model at 25%."""
    net, device = network(model), model.device
    D, tokens, blocks = net.trained_width, samples * seqlen, len(net.blocks)
    k, item = slice_width(D, 0.25), model.dtype.itemsize
    half, single = (rate(device, dtype, size) for dtype in (model.dtype, torch.float32))
    head = 2 * net.head.weight.numel()
    written = sum(linear.weight.numel() // D for block in net.blocks for linear in block.w_out)
    rows = written + sum(linear.weight.numel() // D for block in net.blocks for linear in block.w_in)
    rows += net.head.weight.shape[0] + sum(table.num_embeddings for table in net.embeddings)
    copied = blocks * tokens * item * ((k + 2 * D) + (D + k))
    return {
        "forward": tokens * (flops_per_token(model, context=seqlen // 2) - head) / half,
        "covariance": (blocks + 1) * tokens * 2 * D * D / single,
        "projection": blocks * tokens * 2 * D * k / half,
        "weights": (2 * rows * D * k + 2 * written * D * D) / single,
        "copies of the signal": copied / bandwidth(device, 1 << (28 if device.type == "cuda" else 20)),
    }


def main() -> None:
    parser = cost_parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-2-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--matrix", type=int, default=4096, help="rows of the matrices that measure the rates")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    with device:
        model = AutoModelForCausalLM.from_config(SHAPES[arguments.shape], dtype=torch.bfloat16).eval()
    bound = bound_seconds(model, arguments.samples, arguments.seqlen, arguments.matrix)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (arguments.samples, arguments.seqlen), generator=generator)
    dense, began = size_in_bytes(model), time.perf_counter()
    with peak_memory(device) as peak, timed() as phases:
        minislice.slice_model(model, tokens, slicing=0.25, head="own", batch_size=arguments.batch_size)
    total = time.perf_counter() - began
    result = {
        "machine": hardware(arguments.device),
        "shape": arguments.shape,
        "seconds": total,
        "by phase": {**phases, "fusion and the rest": total - sum(phases.values())},
        "bound": bound,
        "dense model, GB": dense / 1e9,
        "peak, GB": peak.most and peak.most / 1e9,
    }
    report(result, arguments.json)


if __name__ == "__main__":
    main()
