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

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel

from . import __version__, processes
from .blocks import Network, TiedHead, inference
from .checkpoint import INDEX, load_config, locate, tensor_files
from .evaluation import size_in_bytes
from .families import network
from .fusion import bare, fuse_blocks, fuse_embeddings, fuse_head, untie_head
from .modeling import SlicedConfig
from .options import SlicingOptions, SlicingReport
from .saving import put_in_place, require_free
from .slicing import InMemory, InterleavedPass, widths_of
from .tokens import Batch, Tokens, count_tokens, token_batches


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
        source: a folder, one of `checkpoint.EMBEDDED`, or a name on the Hugging Face hub; with safetensors files.
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
    work = WorkFolder(Path(out).resolve())
    target = require_free(out, force)
    trained = TrainedWeights(source, dtype)
    net = trained.net
    widths = widths_of(net, options)
    batches = token_batches(net.model, tokens, attention_mask, -(-batch_size // processes.count()))
    share = [_on(device, batch) for batch in processes.share(batches)]
    report = SlicingReport(options, net.trained_width, count_tokens(batches))
    net.install()
    untie_head(net)
    if processes.index() == 0:
        _require_disk(work.path, net, widths, options, report.calibration_tokens, trained.dtype)
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
        _describe(work.model, trained, report, tokenizer, notes)
        put_in_place(work.model, target)
        shutil.rmtree(work.path)
    processes.wait()
    return report


class TrainedWeights:
    """The trained model on disk, and the same model without weights (on torch's meta device) to bring them into.

    Raises:
        ValueError: a file is missing, damaged, or contradicts the config.
    """

    def __init__(self, source: str | os.PathLike, dtype: torch.dtype | str):
        self.folder = local_folder(source)
        config = load_config(self.folder)
        self.files = tensor_files(self.folder)
        if not self.files:
            raise ValueError(f"{self.folder} has no safetensors files; load the model and save it with save_pretrained")
        if dtype == "auto":
            dtype = config.dtype or self._open(next(iter(self.files))).dtype
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        model = without_weights(config, self.dtype)
        config.name_or_path = str(source)
        if (self.folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        self.net = network(model)
        # Every parameter's name in the trained model, by the module that it belongs to: blocks will change the names.
        first = {parameter: name for name, parameter in model.named_parameters()}  # of a tied one, the embedding's
        self.names = {
            (module, name): self._stored(first[parameter])
            for module in model.modules()
            for name, parameter in module.named_parameters(recurse=False)
        }
        self._check(model)

    def read(self, root: nn.Module, device: torch.device) -> None:
        """Bring the weights of a module and all inside it in."""
        for module in root.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                tensor = self._open(self.names[module, name]).to(device, self.dtype, copy=True)
                setattr(module, name, nn.Parameter(tensor, requires_grad=parameter.requires_grad))

    def checksum(self) -> str:
        """Of everything that the sliced model depends on, by content."""
        digest = hashlib.sha256()
        for path in [self.folder / "config.json", *sorted(set(self.files.values()))]:
            with open(path, "rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        return digest.hexdigest()[:16]

    def _open(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def _stored(self, name: str) -> str:
        """The name of a tensor in the files, where a base model's may lack the first word."""
        return name if name in self.files else name.removeprefix(f"{self.net.model.base_model_prefix}.")

    def _check(self, model: PreTrainedModel) -> None:
        ignored = model._keys_to_ignore_on_load_unexpected or ()
        unexpected = sorted(
            name
            for name in self.files.keys() - set(self.names.values())
            if not any(pattern in name for pattern in ("inv_freq", "lm_head.weight", *ignored))
        )
        if unexpected:
            raise ValueError(
                f"{self.files[unexpected[0]]}: {len(unexpected)} tensors are unexpected, such as {unexpected[0]}"
            )
        for (module, name), stored in self.names.items():
            if stored not in self.files:
                raise ValueError(f"{self.folder}: no file has the tensor {stored}")
            with safe_open(self.files[stored], framework="pt") as tensors:
                found, expected = tensors.get_slice(stored).get_shape(), list(getattr(module, name).shape)
            if found != expected:
                raise ValueError(
                    f"{self.files[stored]}: {stored} is {found}, and the config asks for {expected}; weights and "
                    "config.json belong to different models"
                )


class WorkFolder:
    """What a run leaves on the disk until it is finished (see the top of this file)."""

    def __init__(self, target: Path):
        self.path = target.with_name(f".{target.name}.partial")
        self.model = self.path / "model"
        if self.path.exists() and not self.model.exists() and processes.index() == 0:
            shutil.rmtree(self.path)  # of a run that was killed in its very last step: the target is whole

    def open(self, settings: dict[str, Any]) -> None:
        """Make the folder, or take up the run that it is from.

        Raises:
            ValueError: that run has other settings.
        """
        self.settings = json.loads(json.dumps(settings))
        before = self.progress()
        if before is None:
            if self.path.exists():
                shutil.rmtree(self.path)
            self.model.mkdir(parents=True)
            self.write_progress({})
            return
        differing = [
            f"{name} {before['settings'].get(name)!r} there, {value!r} here"
            for name, value in self.settings.items()
            if before["settings"].get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{self.path} holds an unfinished run with other settings ({'; '.join(differing)}); give the same "
                "settings to go on with it, save to another folder, or delete it to start again"
            )

    def progress(self) -> dict[str, Any] | None:
        """What progress.json says; None where there is none."""
        try:
            return json.loads((self.path / "progress.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write_progress(self, reached: dict[str, Any]) -> None:
        """Replace progress.json whole."""
        text = json.dumps({"settings": self.settings, **reached})
        with _whole_file(self.path / "progress.json") as new:
            new.write_text(text, encoding="utf-8")


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
        _sync(self.work.path / current)
        processes.wait()
        state = f"state-{position.done}.safetensors"
        if processes.index() == 0:
            spectra = {f"eigenvalues.{i}": values for i, values in enumerate(position.report.eigenvalues)}
            _write_tensors(
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
        _write_tensors(tensors, self._file(index))

    def _read_back(self, embedding: nn.Embedding) -> None:
        """The sliced embedding, that a tied head needs."""
        name = next(name for name, module in self._modules(0).items() if module is embedding)
        weight = load_file(self._file(0))[f"base.{name}.weight"].to(self.device)
        embedding.weight = nn.Parameter(weight, requires_grad=embedding.weight.requires_grad)


def _describe(folder: Path, trained: TrainedWeights, report: SlicingReport, tokenizer: Any, notes: dict | None) -> None:
    """Write all files of the new model but the weights, and see that these are what the config says."""
    sliced = without_weights(_sliced_config(trained.net, report.options, report.widths, report.ranks), trained.dtype)
    sliced.base.slicing, sliced.generation_config = report, trained.net.model.generation_config
    sliced.describe(notes)
    expected = {name: list(tensor.shape) for name, tensor in sliced.state_dict().items()}
    for name in sliced._tied_weights_keys or ():
        del expected[name]
    found, files = {}, {}
    for path in sorted(folder.glob("model-*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                found[name], files[name] = tensors.get_slice(name).get_shape(), path.name
    if found != expected:
        name = min(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        raise RuntimeError(f"{folder}: {name} is {found.get(name)}, and the config asks for {expected.get(name)}")
    sliced.save_description(folder, tokenizer)
    sizes = {"total_parameters": sliced.num_parameters(), "total_size": size_in_bytes(sliced)}
    with _whole_file(folder / INDEX) as new:
        new.write_text(json.dumps({"metadata": sizes, "weight_map": dict(sorted(files.items()))}, indent=2) + "\n")


def _sliced_config(net: Network, options: SlicingOptions, widths: list[int], ranks: list[int]) -> SlicedConfig:
    """What slicing makes of a network's config; the network itself may be dense, or sliced up to anywhere."""
    forms = []
    for (k, k_next), rank in zip(pairwise(widths), ranks, strict=True):
        if options.adapter == "full" or k > k_next:
            forms.append("full")
        else:
            forms.append(None if rank == 0 and k == k_next else rank)
    biases = [
        [
            name
            for name, linear in block.linears.items()
            if linear.bias is not None or (linear in block.w_in and _shifts(block.norm))
        ]
        for block in net.layers[0].blocks
    ]
    return SlicedConfig(
        base=net.model.config,
        widths=widths,
        adapters=forms,
        norm_eps=[bare(norm, net.trained_width).eps for norm in net.norms],
        biases=biases,
        head="tied" if options.head == "tied" else "linear",
        head_bias=net.head.bias is not None or _shifts(net.final_norm),
        head_was_tied=net.model.head_was_tied,
    )


def _shifts(norm: nn.Module) -> bool:
    return getattr(norm, "bias", None) is not None


def without_weights(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of a config on torch's meta device: every shape, no weights; RoPE's tables are there."""
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model.eval()


def _require_disk(
    folder: Path, net: Network, widths: list[int | None], options: SlicingOptions, tokens: int, dtype: torch.dtype
) -> None:
    """Raise a ValueError where the disk hasn't room for all of the new model and what the run keeps beside it."""
    D = net.trained_width
    widths = [D if k is None else k for k in widths]
    ranks = [0 if options.adapter == "none" else min(k, D - k_next) for k, k_next in pairwise(widths)]
    model = size_in_bytes(without_weights(_sliced_config(net, options, widths, ranks), dtype))
    signals = 3 * tokens * D * dtype.itemsize  # before a block, after it, and at full width
    needed = model + signals + 4 * 8 * D * D
    disk = next(parent for parent in folder.parents if parent.exists())
    room = shutil.disk_usage(disk).free + sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if needed > room:
        raise ValueError(
            f"{folder} needs about {needed / 1e9:.2f} GB, of which {signals / 1e9:.2f} GB for the calibration set's "
            f"signal, and the disk has {room / 1e9:.2f} GB; free some, slice more, or save to another disk"
        )


def local_folder(source: str | os.PathLike) -> Path:
    """The folder of a model: of a name on the hub, where its files are kept once fetched.

    Raises:
        ValueError: there is none.
    """
    place = locate(source)
    if isinstance(place, Path):
        return place
    try:
        return Path(snapshot_download(place, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{source!r} is no folder here, and can't be fetched from the hub: {error}") from error


def _checksum_of(batches: list[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.ids, batch.mask):
            digest.update(b"" if tensor is None else str(tensor.shape).encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _on(device: torch.device, batch: Batch) -> Batch:
    mask = None if batch.mask is None else batch.mask.to(device)
    return Batch(batch.ids.to(device), mask, batch.first_sequence)


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    with _whole_file(path) as new:
        try:
            save_file(tensors, new, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(f"can't write {path}: {error}") from error


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path`, whole and on the disk, when the block ends."""
    new = path.with_name(f".{path.name}.new")
    yield new
    _sync(new)
    new.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Have what was written to a file, or a folder's list of files, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
