r"""What slicing costs over one bare forward pass of the layers, and what memory it needs above the model.

    python notebooks/measure/slicing_cost.py
    python notebooks/measure/slicing_cost.py --device cuda --dtype bfloat16 --shape llama-2-7b --samples 128 \
        --seqlen 2048 --batch-size 4 --rounds 1 --beyond

A model of OPT-125M's shape with random weights, 16 x 512 calibration tokens, 25%, float32. The bare forward pass runs
transformers' own layers on the same batches. Then the same with what lies beyond the paper: W_out repaired, a quarter
of the neurons deleted, both. Times are ratios within one run: the passes alternate, the median of the rounds counts.

"floor" is what the machine's bare matrix products and decompositions of the same shapes take, without anything around
them. Slicing can't be faster than the sum of these without other mathematics.
"""

import copy
import json
import statistics
import time
from collections import Counter

import torch
from common import SHAPES, WORK, cost_parser, timed
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture.network import inference, network
from minislice.corpus.batches import token_batches
from minislice.measuring.provenance import hardware
from minislice.measuring.timing import peak_memory, seconds_of
from minislice.pca import RUN

SLICING = 0.25
BEYOND = {"repair": {"repair": True}, "neurons": {"neurons": 0.25}, "both": {"repair": True, "neurons": 0.25}}


def forward_seconds(model, tokens, batch_size: int) -> float:
    """One pass of the decoder layers over all batches, without embeddings and head."""
    net = network(model)
    with inference(model):
        embedded = [net.embed(batch.ids, batch.mask) for batch in token_batches(model, tokens, None, batch_size)]

        def layers() -> None:
            for x, contexts in embedded:
                for layer, context in zip(net.decoder.layers, contexts, strict=True):
                    x = layer(x, **context)

        return seconds_of(layers, model.device)


def slicing(model, tokens, batch_size: int, **options) -> tuple[float, dict[str, float], float | None]:
    """Of slicing a copy: its seconds, those of its phases, and the memory that it needs above the loaded model, MiB."""
    working = minislice.fuse(copy.deepcopy(model))
    began = time.perf_counter()
    with peak_memory(model.device) as peak, timed() as seconds:
        minislice.slice_model(working, tokens, slicing=SLICING, head="own", batch_size=batch_size, **options)
    return time.perf_counter() - began, seconds, peak.added and peak.added / 2**20


@torch.no_grad()
def floor_seconds(model, tokens, batch_size: int) -> Counter:
    """By phase: the seconds of its products and decompositions alone, on numbers of the same shapes."""
    net = network(model)
    D, rows, boundaries = net.trained_width, tokens.numel(), len(net.blocks) + 1
    k = round(D * (1 - SLICING))
    like = {"dtype": model.dtype, "device": model.device}
    X, P, Q = torch.randn(rows, D, **like), torch.randn(D, k, **like), torch.randn(D, D, **like)
    C = (Q.T @ Q).double()
    runs, batches = X.split(RUN), X.split(batch_size * tokens.shape[1])
    readers = [linear.weight for block in net.blocks for linear in block.w_in]
    readers += [table.weight for table in (*net.embeddings, net.head)]
    writers = [linear.weight.T for block in net.blocks for linear in block.w_out]
    work = {
        "projection": (boundaries, lambda: [batch @ P for batch in batches]),
        "weights": (1, lambda: [[W @ P for W in readers + writers], [W @ Q for W in writers]]),
        "covariance": (boundaries, lambda: [run.T @ run for run in runs]),
        "change of basis": (boundaries - 1, lambda: C @ C @ C),  # Q C Q^T
        "eigendecomposition": (boundaries, lambda: torch.linalg.eigh(C)),
    }
    return Counter({phase: times * seconds_of(once, model.device) for phase, (times, once) in work.items()})


def most(peaks: list[float | None]) -> float | None:
    """The largest; None where the system doesn't say how much memory is used."""
    return None if None in peaks else max(peaks)


def main() -> None:
    parser = cost_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16, help="calibration sequences (default: 16)")
    parser.add_argument("--seqlen", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--shape", choices=SHAPES, default="opt-125m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--beyond", nargs="*", choices=BEYOND, default=[*BEYOND], help="without a name: the paper alone"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = SHAPES[arguments.shape]
    with torch.device(arguments.device):
        model = AutoModelForCausalLM.from_config(shape, dtype=getattr(torch, arguments.dtype)).eval()
    tokens = torch.randint(shape.vocab_size, (arguments.samples, arguments.seqlen))
    forward_seconds(model, tokens[:2], arguments.batch_size)  # warm up
    bare, totals, phases, floors, memory, beyond = [], [], [], [], [], {name: [] for name in arguments.beyond}
    for _ in range(arguments.rounds):
        bare.append(forward_seconds(model, tokens, arguments.batch_size))
        total, seconds, peak = slicing(model, tokens, arguments.batch_size)
        totals.append(total)
        phases.append({phase: seconds[phase] / bare[-1] for phase in WORK})
        phases[-1]["other"] = total / bare[-1] - sum(phases[-1].values())
        memory.append(peak)
        floor = floor_seconds(model, tokens, arguments.batch_size)
        floors.append({phase: seconds / bare[-1] for phase, seconds in floor.items()})
        for name in arguments.beyond:
            other, _, peak = slicing(model, tokens, arguments.batch_size, **BEYOND[name])
            beyond[name].append((other / total, peak))
    signal = tokens.numel() * shape.hidden_size * model.dtype.itemsize
    result = {
        "machine": hardware(arguments.device),
        "seconds": statistics.median(totals),
        "slicing / forward": statistics.median(total / one for total, one in zip(totals, bare, strict=True)),
        "by phase": {phase: statistics.median(p[phase] for p in phases) for phase in phases[0]},
        "floor": {phase: statistics.median(f[phase] for f in floors) for phase in floors[0]},
        "peak memory above the loaded model, MiB": most(memory),
        "beyond / slicing": {name: statistics.median(ratio for ratio, _ in found) for name, found in beyond.items()},
        "beyond, peak memory, MiB": {name: most([peak for _, peak in found]) for name, found in beyond.items()},
        "signal of the calibration set at full width, MiB": signal / 2**20,
    }
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
