"""How a sliced model's folder is written: whole or not at all, with a record of how it was made and a model card.

A saved model takes this file with it, as it does `blocks`; it needs torch and transformers alone.
"""

import dataclasses
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel


def require_free(target: str | os.PathLike, force: bool = False) -> Path:
    """The folder to write, as an absolute path; a link to a folder is followed.

    Raises:
        ValueError: it is a file, or a folder with files in it and no `force`.
    """
    target = Path(target).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; give a folder to save to")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise ValueError(f"{target} exists and isn't empty; save to another folder, or replace all of it with force")
    return target


@contextmanager
def whole_folder(target: str | os.PathLike, force: bool = False) -> Iterator[Path]:
    """A new folder to write to; it becomes `target` when the block ends, and vanishes if the block fails.

    The new folder is a sibling of the target, so that the last step is one rename: whoever looks at the target sees
    nothing, or what was there before, or all of the new. A killed process leaves the sibling (".NAME.partial-..."),
    never the target.

    Args:
        force: replace a target that has files in it; it stays as it is until the new folder is complete.

    Raises:
        ValueError: see `require_free`.
    """
    target = require_free(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.partial-{uuid.uuid4().hex[:8]}")
    new.mkdir()
    try:
        yield new
        put_in_place(new, target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def put_in_place(new: Path, target: Path) -> None:
    """Rename a finished folder to `target`, which it replaces if there is one."""
    old = target.with_name(f".{target.name}.replaced-{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    finally:
        if target.exists():  # otherwise the old one could not be put back: never delete the last copy
            shutil.rmtree(old, ignore_errors=True)


def made_by(model: PreTrainedModel) -> dict[str, Any]:
    """The record of how a `SlicedForCausalLM` was sliced, for people: its `slicing.SlicingReport` in JSON's types.

    It is empty for a model that was loaded: its config has the record already.
    """
    report = getattr(model.base, "slicing", None) or getattr(model, "slicing", None)
    if report is None and model.config.slicing:
        return {}
    own = getattr(sys.modules.get(__package__), "__version__", "of unknown version")
    name = model.base.config.name_or_path
    record: dict[str, Any] = {
        # A name on the hub as it is; of a path the last part, which gives no folder of this machine away.
        "base_model": Path(name).name if Path(name).is_dir() else name,
        "versions": f"minislice {own}, torch {torch.__version__}, transformers {transformers.__version__}",
    }
    if report is not None:
        record["calibration tokens"] = report.calibration_tokens
        record["options"] = dataclasses.asdict(report.options)
    return record


CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [minislice, slicegpt]
{base_model}---

# {title}

A {family} language model sliced with SliceGPT (Ashkboos et al., ICLR 2024), by minislice.

| | |
| --- | --- |
{rows}

{usage}
"""

USAGE = """```python
from transformers import AutoModelForCausalLM

import minislice  # registers the architecture; without minislice, pass trust_remote_code=True below instead

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

`trust_remote_code=True` runs the Python files that lie in this folder."""

USAGE_STOCK = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

It is an ordinary model of its architecture; minislice isn't needed."""


def model_card(model: PreTrainedModel, parameters: int, usage: str = USAGE) -> str:
    """The text of README.md for a `SlicedForCausalLM`, or for what it was exported to."""
    config = model.config
    record = dict(config.slicing or {})
    options = record.pop("options", {})
    rows = {
        **dict(sorted(record.items())),
        **{f"option `{name}`": value for name, value in sorted(options.items()) if value is not None},
        "widths": f"{_range(config.widths)} of {config.hidden_size}",
        "adapters": _adapters(config.adapters),
        "head": config.head,
        "parameters": parameters,
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    name = record.get("base_model") or ""
    on_hub = name.count("/") == 1 and not name.startswith(("/", "."))
    return CARD.format(
        base_model=f"base_model: {name}\n" if on_hub else "",
        title=f"{Path(name).name}, sliced" if name else "A sliced language model",
        family=config.base.model_type,
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items()),
        usage=usage,
    )


def _adapters(forms: list[str | int | None]) -> str:
    ranks = [form for form in forms if isinstance(form, int) and form > 0]
    kinds = ["full"] if "full" in forms else []
    if ranks:
        kinds.append(f"low-rank, rank {_range(ranks)}")
    return " and ".join(kinds) or "none"


def _range(values: list[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)} to {max(values)}"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
