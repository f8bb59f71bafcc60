"""Slicing a model that is larger than memory: part by part, and after each part its state on disk, to continue from.

The steps are those of `slicing.Slicer`; here is another loop around them. A model of n layers has n + 2 parts: the
embeddings, each layer, the head. When a part's turn comes, its weights are read from the trained model's safetensors
files, fused, sliced, written to a file of the new model, and let go. The folder NAME appears when all parts are done;
`workfolder` says what lies beside it until then.
"""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from transformers.core_model_loading import revert_weight_conversion

from ..architecture.building import form_of
from ..architecture.folder import put_in_place, require_free, sync, whole_file
from ..architecture.modeling import SlicedForCausalLM, without_memory
from ..architecture.network import inference
from ..beyond.slicing import BeyondSlicer
from ..calibration import require_finite
from ..corpus.batches import Batch, Tokens, count_tokens, token_batches
from ..fusion import fuse_blocks, fuse_embeddings, fuse_head, prepare
from ..measuring.cost import size_in_bytes
from ..measuring.provenance import hash_of
from ..measuring.shapes import config_after
from ..options import SlicingOptions
from ..report import SlicingReport
from ..rotation import require_whole
from ..storage.checks import usable_device
from ..storage.files import INDEX
from ..storage.unfinished import require_unchanged, state_of
from ..version import __version__
from .processes import Processes
from .shared import StoredCalibration
from .source import TrainedWeights
from .workfolder import WorkFolder

REPORTED = ("widths", "eigenvalues", "discarded", "ranks")  # what of the report grows with every part


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
    its own. A run that was interrupted continues from the last finished part when it is called again in the same way.

    Args:
        source: a folder, one of `corpus.embedded.EMBEDDED`, or a name on the Hugging Face hub; with safetensors files.
        tokens, attention_mask, batch_size: the calibration set, as in `slice_model`.
        out: the folder to write; `force` replaces what is in it.
        dtype: of weights and signal; "auto" is the one that the weights were saved in.
        device: where to compute; it holds one part, and the signal of one batch.
        tokenizer, notes: go into the folder, as in `save`.
        processes: those that share the calibration set; each calls this in the same way. None: this process alone.
        options: the fields of `SlicingOptions`.

    Raises:
        ValueError: as in `slice_model` and `load`; too little room on the disk; weights that change meanwhile; an
            unfinished run in the same place that has other settings, or changed files, or that is still at work.
        OSError: the system refused a write; the disk is full, for example.
    """
    options, processes = SlicingOptions(**options), processes or Processes()
    if options.fisher:
        raise ValueError("fisher needs the whole network in memory for a gradient; slice in memory, or leave it out")
    if device == "auto":
        raise ValueError("a streamed model has one part in memory, on one device: give cpu or cuda:0, not auto")
    device, trained = torch.device(usable_device(device)), TrainedWeights(source, dtype, trust_remote_code)
    net = trained.net
    require_whole(net, "slice")
    if net.is_fused:
        raise ValueError(f"{source} is fused already; slice it in memory, or give the trained model")
    batches = token_batches(net.model, tokens, attention_mask, batch_size, options.least_batches)
    batches = [batch.to(device) for batch in batches]
    work = WorkFolder(Path(out).resolve(), processes)
    slicer = StreamedSlicer(trained, options.resolved(net), batches, work)
    report, options = slicer.report, slicer.options
    with work.locked():
        if processes.is_first:
            target = require_free(out, force, [trained.folder])
            slicer.require_disk()
            work.begin(
                {
                    "model": [(path.name, state) for path, state in trained.states.items()],
                    "calibration": [[x is not None and hash_of(x) for x in (b.ids, b.mask)] for b in batches],
                    "dtype": trained.dtype,
                    "batch size": batch_size,
                    "processes": processes.count,
                    **dataclasses.asdict(options),
                    "versions": [__version__, torch.__version__, transformers.__version__],
                }
            )
        processes.wait()
        with inference(net.model):
            slicer.slice_parts(progress and processes.is_first)
        report.warn_of_too_few_tokens()
        if processes.is_first:
            slicer.write_description(tokenizer, notes)
            put_in_place(work.model, require_free(target, force, [trained.folder]))  # others may have written there
            work.remove()
        processes.wait()
    return report


class StreamedSlicer(BeyondSlicer):
    """The same steps. Before each, a part of the model is read and fused; afterwards it is written and let go."""

    def __init__(self, trained: TrainedWeights, options: SlicingOptions, batches: list[Batch], work: WorkFolder):
        net, self.keep_tie = trained.net, options.head == "tied"
        self.trained, self.work, self.processes = trained, work, work.processes
        self.device = batches[0].ids.device
        report = SlicingReport(options, net.trained_width, count_tokens(batches))
        super().__init__(net, StoredCalibration(batches, work.processes, work.path), options.fit(net), report)
        self.adapters: list[str | int | None] = []  # of the blocks that are done, as `SlicedConfig` has them
        self.written: dict[str, tuple[int, int]] = {}  # the states of the new model's files
        names = {module: name for name, module in net.model.named_modules()}
        first, last = [*net.embeddings, *filter(None, [net.embedding_norm])], [net.final_norm, net.head]
        layers = [f"{names[net.their_layers]}.{index}" for index in range(len(net.layers))]
        self.parts = [[names[x] for x in first], *([name] for name in layers), [names[x] for x in last]]

    def sliced_model(self, widths: list[int], adapters: list[str | int | None]) -> SlicedForCausalLM:
        """The model that slicing makes, without weights; `adapters` of the blocks that are not dropped."""
        config = config_after(self.trained.empty_model(), self.options, widths, adapters)
        return without_memory(config, dtype=self.trained.dtype)

    def require_disk(self) -> None:
        """Raise a ValueError if the disk hasn't room for the new model and for what the run keeps beside it."""
        D, folder, dtype = self.report.trained_width, self.work.path, self.trained.dtype
        widths = [D if k is None else k for k in self.widths]
        model = self.sliced_model(widths, self.options.largest_adapters(D, widths))
        # The signal before a block, after it, at full width; to repair, the dense network's before and after it.
        signals = (5 if self.options.repair else 3) * self.report.calibration_tokens * D * dtype.itemsize
        needed = size_in_bytes(model) + signals + 4 * 8 * D * D
        written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())  # by an earlier run
        room = shutil.disk_usage(folder).free + written
        if needed > room:
            raise ValueError(
                f"{folder} needs about {needed / 1e9:.2f} GB, of which {signals / 1e9:.2f} GB for the calibration "
                f"set's signal, and the disk has {room / 1e9:.2f} GB; free some, slice more, or save to another disk"
            )

    def slice_parts(self, progress: bool) -> None:
        """Slice the parts that an earlier run has not sliced."""
        prepare(self.net, self.keep_tie)
        for module in self.net.model.modules():  # RoPE's tables are here; weights follow part by part
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, buffer.to(self.device))
        for index in tqdm(range(self.restore(), len(self.parts)), desc="slicing", disable=not progress, leave=False):
            self.read(index)
            if index == 0:
                fuse_embeddings(self.net)
                self.slice_embeddings()
            elif index <= len(self.net.layers):
                layer = self.net.layers[index - 1]
                fuse_blocks(self.net, layer.blocks)
                self.slice_layer(layer)
                self.adapters += [form_of(block) for block in layer.blocks]
            else:
                fuse_head(self.net, self.keep_tie)
                require_finite(self.net.model.named_parameters())
                self.slice_head()
            require_finite(self.net.model.named_parameters())  # those that are in memory
            if self.processes.is_first:
                self.write(index)
            self.let_go(index)
            self.save(index + 1)

    def slice_head(self) -> None:
        """A fitted head needs the sliced embedding, which has been let go."""
        embedding = self.net.embeddings[0]
        if is_fitted := self.options.head == "fitted":
            weight = load_file(self.file(0))[f"base.{self.parts[0][0]}.weight"]
            embedding.weight = nn.Parameter(weight.to(self.device), requires_grad=False)
        super().slice_head()
        if is_fitted:
            self.net.head.weight = embedding.to("meta").weight

    def read(self, index: int) -> None:
        for name in self.parts[index]:
            self.trained.read(self.net.model.get_submodule(name), self.device)

    def let_go(self, index: int) -> None:
        """Keep no more than the shapes of a part."""
        for name in self.parts[index]:
            self.net.model.get_submodule(name).to("meta")

    def file(self, index: int) -> Path:
        return self.work.model / f"model-{index + 1:05d}-of-{len(self.parts):05d}.safetensors"

    def write(self, index: int) -> None:
        """Write a part. A head that shares the embedding's matrix is written without it: that is let go."""
        prefixes, state = tuple(f"{name}." for name in self.parts[index]), self.net.model.state_dict()
        tensors = {name: x.cpu() for name, x in state.items() if name.startswith(prefixes) and not x.is_meta}
        stored, path = revert_weight_conversion(self.net.model, tensors), self.file(index)
        with whole_file(path) as new:
            save_file({f"base.{name}": x.contiguous() for name, x in stored.items()}, new, metadata={"format": "pt"})
        self.written[f"model/{path.name}"] = state_of(path)

    def save(self, done: int) -> None:
        """Write the state; only when it is on the disk, delete the signals of the state before."""
        needed = [self.Z, *([self.dense] if self.options.repair else [])]
        for signal in needed:
            sync(signal.path)
        signals = self.processes.gathered({signal.path.name: state_of(signal.path) for signal in needed})
        if self.processes.is_first:
            state = {
                "done": done,
                "finished": done == len(self.parts),
                "parts": self.written,
                "signals": signals,  # of each process: the states of Z and, to repair, of the dense signal
                "adapters": self.adapters,
                "report": {name: getattr(self.report, name) for name in REPORTED},
                "Q": self.Q.cpu(),
                "generator": self.generator.get_state(),
            }
            self.work.write(state)
        self.processes.wait()
        self.calibration.spare(needed)

    def restore(self) -> int:
        """Continue where an earlier run was, if its files are unchanged. Returns the number of parts that are done."""
        state = self.work.read()
        if "done" not in state:
            return 0
        signals, self.written = state["signals"][self.processes.index], state["parts"]
        require_unchanged(self.work.path, signals | (self.written if self.processes.is_first else {}))
        self.adapters, self.Q = state["adapters"], state["Q"].to(self.device)
        vars(self.report).update(state["report"])
        self.generator.set_state(state["generator"])
        widths = [self.report.widths[-1], self.report.trained_width]  # of Z, and of the dense signal
        opened = [self.calibration.open(*signal, self.trained.dtype) for signal in zip(signals, widths, strict=False)]
        self.Z, self.dense = (*opened, None)[:2]
        self.calibration.spare(opened)
        self.read(0)
        self.calibration.embed(self.net)  # for the contexts
        self.let_go(0)
        return state["done"]

    def write_description(self, tokenizer: Any, notes: dict[str, Any] | None) -> None:
        """Write all files of the new model except the weights, which are there."""
        sliced, folder, files = self.sliced_model(self.report.widths, self.adapters), self.work.model, {}
        sliced.base.slicing, sliced.generation_config = self.report, self.net.model.generation_config
        sliced.describe(notes)
        sliced.save_description(folder, tokenizer)
        for path in sorted(folder.glob("model-*.safetensors")):
            with safe_open(path, framework="pt") as tensors:
                files |= dict.fromkeys(tensors.keys(), path.name)
        sizes = {"total_parameters": sliced.num_parameters(), "total_size": size_in_bytes(sliced)}
        with whole_file(folder / INDEX) as new:
            new.write_text(json.dumps({"metadata": sizes, "weight_map": dict(sorted(files.items()))}, indent=2) + "\n")
