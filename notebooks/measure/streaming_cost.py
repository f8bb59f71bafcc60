"""Slicing a model from disk, one layer in memory at a time: peak memory, and time over one bare forward pass.

    python notebooks/measure/streaming_cost.py
    python notebooks/measure/streaming_cost.py --shape opt-6.7b

Makes a model with random weights (bfloat16, sharded) of the shape of Phi-2, 2.78B parameters, in a temporary folder,
and slices it by 25% with 4 x 512 calibration tokens, in a process whose private memory is limited (Linux). The bare
forward pass is that of the same layers on the same tokens; each layer is read when its turn comes, which is not counted
in its time.
"""

import argparse
import itertools
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import SHAPES, cost_parser, timed
from safetensors.torch import save_file
from transformers import AutoConfig

from minislice.architecture.modeling import without_memory
from minislice.architecture.network import inference
from minislice.command.slice import return_freed_memory
from minislice.corpus.batches import token_batches
from minislice.large.source import TrainedWeights
from minislice.large.streaming import slice_streamed
from minislice.measuring.timing import peak_memory
from minislice.storage.files import INDEX


def make(shape: str, folder: Path) -> None:
    """Random weights on the disk, a shard for each layer: no more than one is in memory."""
    config = SHAPES[shape]
    config.dtype = torch.bfloat16
    model = without_memory(config, dtype=torch.bfloat16)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    generator, index = torch.Generator().manual_seed(0), {}
    layers = itertools.groupby(model.named_parameters(), key=lambda named: re.findall(r"layers\.\d+", named[0]))
    for number, (_, named) in enumerate(layers):
        file, tensors = f"model-{number:05d}.safetensors", {}
        for name, parameter in named:
            noise = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
            tensors[name] = (noise + name.endswith("norm.weight")).to(torch.bfloat16)
            index[name] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def tokens_for(folder: Path) -> torch.Tensor:
    vocabulary = AutoConfig.from_pretrained(folder).vocab_size
    return torch.randint(vocabulary, (4, 512), generator=torch.Generator().manual_seed(1))


def forward(folder: Path) -> float:
    """Seconds of one pass of transformers' own layers, without reading them."""
    trained = TrainedWeights(folder, "auto")
    net, cpu, seconds = trained.net, torch.device("cpu"), 0.0
    for module in net.embeddings:
        trained.read(module, cpu)
    with inference(net.model):
        embedded = [net.embed(batch.ids) for batch in token_batches(net.model, tokens_for(folder), None, 4)]
        for index, layer in enumerate(net.decoder.layers):
            trained.read(layer, cpu)
            began = time.perf_counter()
            embedded = [(layer(x, **contexts[index]), contexts) for x, contexts in embedded]
            seconds += time.perf_counter() - began
            layer.to("meta")
    return seconds


def sliced(folder: Path, limit_gib: float) -> dict:
    """Slice under a limit on private memory."""
    return_freed_memory()  # as the command does
    limit = int(limit_gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    began = time.perf_counter()
    with peak_memory(torch.device("cpu")) as peak, timed() as phases:
        slice_streamed(folder, tokens_for(folder), folder.parent / "sliced", slicing=0.25, batch_size=4)
    return {
        "seconds": time.perf_counter() - began,
        "peak, GiB": peak.most / 2**30,  # mapped files included
        "of which Python and its libraries, GiB": peak.before / 2**30,
        "by phase": dict(phases),
    }


def main() -> None:
    parser = cost_parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="phi-2")
    parser.add_argument("--limit", type=float, default=3.0, help="GiB of private memory for slicing (default: 3)")
    parser.add_argument("--work", help="where to put the models (default: a temporary folder)")
    parser.add_argument("--slice", type=Path, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.slice:
        print(json.dumps(sliced(arguments.slice, arguments.limit)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        folder = Path(work, "dense")
        make(arguments.shape, folder)
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        bare = forward(folder)
        limits = {"--slice": folder, "--limit": arguments.limit, "--threads": arguments.threads}
        command = [sys.executable, __file__, *(str(word) for option in limits.items() for word in option)]
        result = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
    phases = result.pop("by phase")
    result = {
        "model on disk, GB": size / 1e9,
        **result,
        "bare forward pass, seconds": bare,
        "slicing / forward": result["seconds"] / bare,
        "by phase": {name: seconds / bare for name, seconds in phases.items()}
        | {"reading, fusing, writing": (result["seconds"] - sum(phases.values())) / bare},
    }
    print(json.dumps(result, indent=None if arguments.json else 2))


if __name__ == "__main__":
    main()
