"""Where a result comes from: minislice's commit, versions, the machine, the tokens."""

import functools
import hashlib
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from ..version import __version__

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "lm_eval", "peft", "accelerate")


@functools.cache
def commit() -> str:
    """The last one that changed the code, with "+changes" where files differ; without a checkout the version."""

    def output(*arguments: str) -> str:
        git = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        if output("ls-files", "__init__.py"):  # not of a repository that merely has a virtual environment in it
            code = ("--", ".", "../notebooks/*.py")
            last = output("log", "-1", "--format=%H", *code)[:12]
            return f"{last}+changes" if output("status", "--porcelain", *code) else last
    return __version__


def versions() -> dict[str, str]:
    numbers = {"python": platform.python_version(), "minislice": __version__}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            numbers[package] = version(package)
    return numbers


def hardware(device: str) -> str:
    """The GPUs by name and number, or the processor's kind and threads."""
    if torch.device(device).type != "cuda":
        count = torch.get_num_threads()
        return f"CPU, {platform.machine()}, {count} thread{'s' if count > 1 else ''}"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def hash_of(tokens: Tensor) -> str:
    return hashlib.sha256(str(tuple(tokens.shape)).encode() + tokens.cpu().numpy().tobytes()).hexdigest()[:12]


def fingerprint(model: nn.Module) -> str:
    """A checksum of a model's parameters and their names."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
