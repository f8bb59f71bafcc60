"""Slicing a model that is larger than memory: part by part, with a state on disk after each to go on from.

The steps are those of `slicing.Slicer`; what is here is a loop of its own around them, and where weights and state are
meanwhile. A model of n layers has n + 2 parts: embeddings, each layer, head. When a part's turn comes, its weights are
read from the trained model's safetensors files, fused, sliced, written to a file of the new model, and let go.

The folder NAME appears when all is done. What there is beside it until then is said in `workfolder`.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from tqdm.auto import tqdm
from transformers.core_model_loading import revert_weight_conversion

from ..architecture.folder import put_in_place, require_free, sync
from ..architecture.heads import SharingHead
from ..architecture.modeling import form_of
from ..architecture.network import inference
from ..beyond.slicing import BeyondSlicer
from ..calibration import Signal, require_finite
from ..corpus.batches import Batch, Tokens, count_tokens, token_batches
from ..fusion import fuse_blocks, fuse_config, fuse_embeddings, fuse_head, untie_head
from ..heads import tie_embedding
from ..options import SlicingOptions
from ..report import SlicingReport
from ..rotation import require_whole
from ..storage.checks import usable_device
from ..storage.files import write_tensors
from ..version import __version__
from .processes import Processes
from .shared import SharedCalibration
from .source import TrainedWeights, local_folder
from .target import SlicedShapes, require_disk, write_description
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
    trust_remote_code: bool = False,
    progress: bool = False,
    processes: Processes | None = None,
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
        trust_remote_code: as in `load`.
        force: replace `out` if it has files in it; refused as in `require_free`.
        processes: that share the calibration set, each of which calls this in the same way; without, this one alone.
        options: the fields of `SlicingOptions`.

    Raises:
        ValueError: options, tokens, a file of the model, a signal that is not finite, as in `slice_model` and `load`;
            too little room on the disk; weights that change meanwhile; an unfinished run in the same place that had
            other settings, or whose files have changed, or that is still at work. What an earlier run has finished
            stays.
        OSError: the system refused a write; the disk is full, for example.
    """
    options, processes = SlicingOptions(**options), processes or Processes()
    device = torch.device(usable_device(device))
    work = WorkFolder(Path(out).resolve(), processes)
    with work.locked():
        if processes.index == 0:
            if work.is_finished():  # and was killed before it could tidy up
                work.remove()
            target = require_free(out, force, [local_folder(source, trust_remote_code)])
        trained = TrainedWeights(source, dtype, trust_remote_code)
        net = trained.net
        require_whole(net, "slice")
        if net.is_fused:
            raise ValueError(
                f"{source} is fused already; slice it in memory, or give the trained model it was made from"
            )
        options = options.resolved(net)
        widths = options.fit(net)
        batches = [_on(device, batch) for batch in token_batches(net.model, tokens, attention_mask, batch_size)]
        calibration = SharedCalibration(batches, processes, work.path)
        report = SlicingReport(options, net.trained_width, count_tokens(batches))
        shapes = SlicedShapes(trained, options)
        fuse_config(net)
        net.install()
        if options.head == "tied":
            tie_embedding(net)
        else:
            untie_head(net)
        checksum = trained.survey(processes)
        if processes.index == 0:
            require_disk(work.path, shapes, widths, report.calibration_tokens)
            work.open(
                {
                    "model": checksum,
                    "calibration": _checksum_of(batches),
                    "dtype": str(trained.dtype),
                    "batch size": batch_size,
                    "processes": processes.count,
                    **dataclasses.asdict(options),
                    "versions": [__version__, torch.__version__, transformers.__version__],
                }
            )
        processes.wait()
        run = StreamedRun(BeyondSlicer(net, calibration, widths, report), trained, work, device)
        with inference(net.model):
            run.finish(progress and processes.index == 0)
        report.warn_of_missing_rank()
        if processes.index == 0:
            write_description(work.model, shapes, report, run.adapters, tokenizer, notes)
            work.write_progress({**work.progress(), "finished": True})
            put_in_place(work.model, require_free(target, force, [trained.folder]))  # others may have written there
            work.remove()
        processes.wait()
    return report


class StreamedRun:
    """The parts of a network, one after the other: read, fused, sliced, written, let go."""

    def __init__(self, slicer: BeyondSlicer, trained: TrainedWeights, work: WorkFolder, device: torch.device):
        self.slicer, self.net, self.calibration = slicer, slicer.net, slicer.calibration
        self.trained, self.work, self.device = trained, work, device
        self.processes, self.keep_tie = slicer.calibration.processes, slicer.options.head == "tied"
        self.parts = len(self.net.layers) + 2
        self.adapters: list[str | int | None] = []  # of the blocks that are done, as `SlicedConfig` says them
        self.seals: dict[str, list] = {}  # of the files that a later run goes on from, see `WorkFolder.check`
        for module in self.net.model.modules():  # RoPE's tables, which no file holds
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(device))

    def finish(self, progress: bool = False) -> None:
        """Do what an earlier run has not done."""
        done = self._restore()
        for index in tqdm(range(done, self.parts), desc="slicing", disable=not progress, leave=False):
            with self._part(index):
                self._slice(index)
            self._save_state(index + 1)

    def _slice(self, index: int) -> None:
        if index == 0:
            self.slicer.slice_embeddings()
        elif index <= len(self.net.layers):
            layer = self.net.layers[index - 1]
            self.slicer.slice_layer(layer, index - 1)
            self.adapters += [form_of(block) for block in layer.blocks]
        else:
            self.slicer.slice_head()

    @contextmanager
    def _part(self, index: int) -> Iterator[None]:
        """Read and fuse a part; once it is sliced, write it and let it go."""
        for module in self._modules(index).values():
            self.trained.read(module, self.device)
        if index == 0:
            fuse_embeddings(self.net, self.keep_tie)
        elif index <= len(self.net.layers):
            fuse_blocks(self.net, self.net.layers[index - 1].blocks)
        else:
            self.trained.read(self.net.final_norm, self.device)
            fuse_head(self.net, self.keep_tie)
            if self.slicer.options.head == "fitted":
                self._read_back(self.net.embeddings[0])
        if index > len(self.net.layers):
            self._require_finite(index)
        yield
        self._require_finite(index)
        if self.processes.index == 0:
            self._write(index)
        for module in self._modules(index).values():
            module.to("meta")

    def _require_finite(self, index: int) -> None:
        for name, module in self._modules(index).items():
            require_finite((f"{name}.{key}", parameter) for key, parameter in module.named_parameters())

    def _save_state(self, done: int) -> None:
        """Have the state after so many parts on the disk, then let the one before go."""
        slicer = self.slicer
        current = [signal.path for signal in self._signals]
        for path in current:
            sync(path)
        seals = self.processes.gathered([self.work.seal(path.name) for path in current])
        signals = dict(chain(*seals))
        state = f"state-{done}.safetensors"
        if self.processes.index == 0:
            spectra = {f"eigenvalues.{i}": values for i, values in enumerate(slicer.report.eigenvalues)}
            tensors = {"Q": slicer.Q.cpu(), "generator": slicer.generator.get_state(), **spectra}
            write_tensors(tensors, self.work.path / state)
            parts = {name: seal for name, seal in self.seals.items() if name.startswith("model/")}
            self.seals = dict([*parts.items(), self.work.seal(f"model/{self._file(done - 1).name}")])
            self.seals |= signals | dict([self.work.seal(state)])
            reached = {name: getattr(slicer.report, name) for name in ("widths", "discarded", "ranks")}
            reached |= {
                "done": done,
                "signals": [[name for name, _ in theirs] for theirs in seals],  # of each process
                "adapters": self.adapters,
                "files": self.seals,
            }
            self.work.write_progress(reached)
        self.processes.wait()
        self.calibration.pin(self._signals)
        if self.processes.index == 0:
            for stale in self.work.path.glob("state-*"):
                if stale.name != state:
                    stale.unlink()

    def _restore(self) -> int:
        """Put the slicer where an earlier run was. Returns the number of parts that are done.

        Raises:
            ValueError: a file that it left is missing or changed.
        """
        before = self.work.progress()
        if "done" not in before:
            return 0
        done, slicer, report = before["done"], self.slicer, self.slicer.report
        state, current = f"state-{done}.safetensors", before["signals"][self.processes.index]
        self.adapters, self.seals = before["adapters"], before["files"]
        self.work.check(self.seals, [state, *current])
        if self.processes.index == 0:
            self.work.check(self.seals, [f"model/{self._file(index).name}" for index in range(done)])
        tensors = load_file(self.work.path / state)
        report.widths, report.discarded, report.ranks = before["widths"], before["discarded"], before["ranks"]
        report.eigenvalues = [tensors[f"eigenvalues.{boundary}"].clone() for boundary in range(len(report.widths))]
        slicer.Q = tensors["Q"].to(self.device, copy=True)
        slicer.generator.set_state(tensors["generator"].clone())
        slicer.Z = self.calibration.open(current[0], report.widths[-1], self.trained.dtype)
        if slicer.options.repair:
            slicer.dense = self.calibration.open(current[1], self.net.trained_width, self.trained.dtype)
        self.calibration.pin(self._signals)
        with self._embeddings_as_trained():
            self.calibration.embed(self.net)  # for the contexts
        return done

    @property
    def _signals(self) -> list[Signal]:
        """The signals that the pass goes on from."""
        dense = [self.slicer.dense] if self.slicer.options.repair else []
        return [self.slicer.Z, *dense]

    @contextmanager
    def _embeddings_as_trained(self) -> Iterator[None]:
        for module in self._modules(0).values():
            self.trained.read(module, self.device)
        yield
        for module in self._modules(0).values():
            module.to("meta")

    def _modules(self, index: int) -> dict[str, nn.Module]:
        """The modules of a part, by their names in the model."""
        names = {module: name for name, module in self.net.model.named_modules()}
        if index == 0:
            modules = [*self.net.embeddings, *filter(None, [self.net.embedding_norm])]
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
            state = module.state_dict()
            if isinstance(module, SharingHead):  # its matrix is the embedding's, which has been written
                del state["weight"]
            tensors |= {f"{name}.{key}": tensor.cpu() for key, tensor in state.items()}
        stored = revert_weight_conversion(self.net.model, tensors)
        write_tensors({f"base.{name}": tensor for name, tensor in stored.items()}, self._file(index))

    def _read_back(self, embedding: nn.Embedding) -> None:
        """The sliced embedding, that a tied head needs."""
        name = next(name for name, module in self._modules(0).items() if module is embedding)
        weight = load_file(self._file(0))[f"base.{name}.weight"].to(self.device)
        embedding.weight = nn.Parameter(weight, requires_grad=embedding.weight.requires_grad)


def _checksum_of(batches: list[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.ids, batch.mask):
            digest.update(b"" if tensor is None else str(tensor.shape).encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _on(device: torch.device, batch: Batch) -> Batch:
    mask = None if batch.mask is None else batch.mask.to(device)
    return Batch(batch.ids.to(device), mask, batch.first_sequence)
