"""Slicing a model that is larger than memory: part by part, with a state on disk after each to go on from.

The pass is that of `slicing`; what is here is where weights and state are meanwhile. A model of n layers has n + 2
parts: embeddings, each layer, head. When a part's turn comes, its weights are read from the trained model's safetensors
files, fused, sliced, written to a file of the new model, and let go.

The folder NAME appears when all is done. Until then there is, beside it:

    .NAME.partial/progress.json         the settings of the run, and what it has reached; replaced whole
    .NAME.partial/state-3.safetensors   after part 3: the basis, the spectra, the random generator
    .NAME.partial/signal-4-0            the calibration set's signal at boundary 4, the share of process 0
    .NAME.partial/model/                the new model's files
"""

import ctypes
import dataclasses
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from .. import __version__
from ..architecture.blocks import TiedHead
from ..architecture.folder import put_in_place, require_free
from ..architecture.network import inference
from ..corpus.batches import Batch, Tokens, count_tokens, token_batches
from ..fusion import fuse_blocks, fuse_embeddings, fuse_head, untie_head
from ..options import SlicingOptions, SlicingReport
from ..rotation import require_whole
from ..slicing import InMemory, InterleavedPass, widths_of
from ..storage.files import sync, write_tensors
from . import processes
from .source import TrainedWeights
from .target import require_disk, write_description
from .workfolder import WorkFolder


def slice_streamed(
    source: str | os.PathLike,
    tokens: Tokens,
    out: str | os.PathLike,
    attention_mask=None,
    *,
    batch_size: int = 8,
    dtype: torch.dtype | str = "auto",
    device: torch.device | str = "cpu",
    tokenizer: Any = None,
    notes: dict[str, Any] | None = None,
    force: bool = False,
    progress: bool = False,
    **options,
) -> SlicingReport:
    """Slice a model on disk into a new folder, with no more than one part of it in memory at a time.

    The folder is what `slice_model` and `save` would write, weights bit for bit, except that each part has a file of
    its own. A run that was interrupted goes on from the last finished part when it is called again in the same way.

    Args:
        source: a folder, one of `corpus.embedded.EMBEDDED`, or a name on the Hugging Face hub; with safetensors files.
        tokens, attention_mask, batch_size: the calibration set, as in `slice_model`.
        out: the folder to write.
        dtype: of weights and signal; "auto" is the one that the weights were saved in.
        device: that computes; it holds one part, and the signal of one batch.
        tokenizer: saved with the model.
        notes: what else is known, for config and model card; as in `save`.
        force: replace `out` if it has files in it.
        options: the fields of `SlicingOptions`.

    Raises:
        ValueError: options, tokens, a file of the model, a signal that is not finite, as in `slice_model` and `load`;
            too little room on the disk; an unfinished run in the same place that had other settings. What an earlier
            run has finished stays.
    """
    options, device = SlicingOptions(**options), torch.device(device)
    _return_freed_memory()
    work = WorkFolder(Path(out).resolve())
    target = require_free(out, force)
    trained = TrainedWeights(source, dtype)
    net = trained.net
    require_whole(net, "slice")
    if net.is_fused:
        raise ValueError(f"{source} is fused already; slice it in memory, or give the trained model it was made from")
    widths = widths_of(net, options)
    batches = token_batches(net.model, tokens, attention_mask, -(-batch_size // processes.count()))
    share = [_on(device, batch) for batch in processes.share(batches)]
    report = SlicingReport(options, net.trained_width, count_tokens(batches))
    net.install()
    untie_head(net)
    if processes.index() == 0:
        require_disk(work.path, net, widths, options, report.calibration_tokens, trained.dtype)
        work.open(
            {
                "model": trained.checksum(),
                "calibration": _checksum_of(batches),
                "dtype": str(trained.dtype),
                "batch size": batch_size,
                "processes": processes.count(),
                **dataclasses.asdict(options),
                "versions": [__version__, torch.__version__, transformers.__version__],
            }
        )
    processes.wait()
    weights = FromShards(trained, work, device)
    position = InterleavedPass(net, share, widths, report, weights)
    weights.restore(position)
    with inference(net.model):
        position.run(progress and processes.index() == 0)
    if processes.index() == 0:
        write_description(work.model, trained, report, tokenizer, notes)
        put_in_place(work.model, target)
        shutil.rmtree(work.path)
    processes.wait()
    return report


class FromShards(InMemory):
    """Weights that are read part by part from a trained model, and written part by part to a new one."""

    def __init__(self, trained: TrainedWeights, work: WorkFolder, device: torch.device):
        self.trained, self.work, self.device, self.net = trained, work, device, trained.net
        self.parts = len(self.net.layers) + 2
        for module in self.net.model.modules():  # RoPE's tables, which no file holds
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(device))

    @contextmanager
    def part(self, index: int, position: InterleavedPass) -> Iterator[None]:
        """Read and fuse the part; once it is sliced, write it and let it go."""
        for module in self._modules(index).values():
            self.trained.read(module, self.device)
        if index == 0:
            fuse_embeddings(self.net)
        elif index <= len(self.net.layers):
            fuse_blocks(self.net.layers[index - 1].blocks, self.net.trained_width)
        else:
            self.trained.read(self.net.final_norm, self.device)
            fuse_head(self.net)
            if position.options.head == "tied":
                self._read_back(self.net.embeddings[0])
        yield
        if index == position.done and processes.index() == 0:
            self._write(index)
        for module in self._modules(index).values():
            module.to("meta")

    def reached(self, position: InterleavedPass) -> None:
        """Have the state on disk, then let the one before go."""
        current = f"signal-{position.boundary}-{processes.index()}"
        sync(self.work.path / current)
        processes.wait()
        state = f"state-{position.done}.safetensors"
        if processes.index() == 0:
            spectra = {f"eigenvalues.{i}": values for i, values in enumerate(position.report.eigenvalues)}
            write_tensors(
                {"P": position.P.cpu(), "generator": position.generator.get_state(), **spectra}, self.work.path / state
            )
            self.work.write_progress(
                {
                    "done": position.done,
                    "state": state,
                    **{name: getattr(position.report, name) for name in ("widths", "discarded", "ranks")},
                }
            )
        processes.wait()
        for stale in self.work.path.glob(f"signal-*-{processes.index()}"):
            if stale.name != current:
                stale.unlink()
        if processes.index() == 0:
            for stale in self.work.path.glob("state-*"):
                if stale.name != state:
                    stale.unlink()

    def restore(self, position: InterleavedPass) -> None:
        """Put the pass where an earlier run was; nothing happens if there was none."""
        before = self.work.progress()
        if "done" not in before:
            return
        tensors = load_file(self.work.path / before["state"])
        position.done, report = before["done"], position.report
        report.widths, report.discarded, report.ranks = before["widths"], before["discarded"], before["ranks"]
        report.eigenvalues = [tensors[f"eigenvalues.{boundary}"].clone() for boundary in range(len(report.widths))]
        position.P = tensors["P"].to(self.device, copy=True)
        position.generator.set_state(tensors["generator"].clone())
        position.signal = position.room(report.widths[-1], f"signal-{position.boundary}")

    def signal_file(self, name: str) -> Path:
        """In the work folder, one for each process."""
        return self.work.path / f"{name}-{processes.index()}"

    def _modules(self, index: int) -> dict[str, nn.Module]:
        """The modules of a part, by their names in the model."""
        names = {module: name for name, module in self.net.model.named_modules()}
        if index == 0:
            modules = self.net.embeddings
        elif index <= len(self.net.layers):
            modules = [self.net.layers[index - 1]]
        else:
            modules = [self.net.head]
        return {names[module]: module for module in modules}

    def _file(self, index: int) -> Path:
        return self.work.model / f"model-{index + 1:05d}-of-{self.parts:05d}.safetensors"

    def _write(self, index: int) -> None:
        tensors = {}
        for name, module in self._modules(index).items():
            shared = "embedding." if isinstance(module, TiedHead) else None
            for key, tensor in module.state_dict().items():
                if shared is None or not key.startswith(shared):
                    tensors[f"base.{name}.{key}"] = tensor.cpu()
        write_tensors(tensors, self._file(index))

    def _read_back(self, embedding: nn.Embedding) -> None:
        """The sliced embedding, that a tied head needs."""
        name = next(name for name, module in self._modules(0).items() if module is embedding)
        weight = load_file(self._file(0))[f"base.{name}.weight"].to(self.device)
        embedding.weight = nn.Parameter(weight, requires_grad=embedding.weight.requires_grad)


def _return_freed_memory() -> None:
    """Have the C library give freed tensors back to the system, from here on in the whole process.

    glibc keeps blocks of up to 32 MiB for later, in a heap whose holes the next layer's don't quite fit, so that it
    grows with every layer. With a fixed threshold of 1 MiB every tensor above it has pages of its own.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def _checksum_of(batches: list[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.ids, batch.mask):
            digest.update(b"" if tensor is None else str(tensor.shape).encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _on(device: torch.device, batch: Batch) -> Batch:
    mask = None if batch.mask is None else batch.mask.to(device)
    return Batch(batch.ids.to(device), mask, batch.first_sequence)
