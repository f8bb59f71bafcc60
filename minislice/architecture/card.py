"""What a sliced model's folder says to people: how the model was made, and its model card."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

TAGS = "tags: [minislice, slicegpt]"
CARD = f"""---
library_name: transformers
pipeline_tag: text-generation
{TAGS}
{{base_model}}---

# {{title}}

A {{family}} language model sliced with SliceGPT (Ashkboos et al., ICLR 2024), by minislice.

| | |
| --- | --- |
{{rows}}

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

{{usage}}
"""
USAGE_STOCK = "It is an ordinary model of its architecture; minislice isn't needed."
USAGE = """With `import minislice` before that, transformers knows the architecture. Without minislice, pass
`trust_remote_code=True` too, which runs the Python files that lie in this folder."""


def made_by(model: PreTrainedModel) -> dict[str, Any]:
    """How a `SlicedForCausalLM` was made, for people, in JSON's types: its reports of slicing and of recovery.

    A loaded model's config has that record already; then what was done later is returned.
    """
    report = getattr(model.base, "slicing", None) or getattr(model, "slicing", None)
    recovery = getattr(model.base, "recovery", None)
    record: dict[str, Any] = {}
    if report is not None or not model.config.slicing:
        version = getattr(sys.modules.get(__package__.partition(".")[0]), "__version__", "of unknown version")
        if name := model.base.config.name_or_path:
            # Of a path only the last part is written: the folders of this machine are nobody's business.
            on_hub = re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name) and not Path(name).is_dir()
            record["base_model"] = name if on_hub else Path(name).resolve().name
        record["versions"] = f"minislice {version}, torch {torch.__version__}, transformers {transformers.__version__}"
    if report is not None:
        record["calibration tokens"] = report.calibration_tokens
        record["options"] = dataclasses.asdict(report.options)
    if recovery is not None:
        record["recovery"] = dataclasses.asdict(dataclasses.replace(recovery, losses=[]))  # may be thousands
    return record


def model_card(model: PreTrainedModel, parameters: int, usage: str = USAGE) -> str:
    """The text of README.md for a `SlicedForCausalLM`, or for what it was exported to."""
    config = model.config
    record = dict(config.slicing or {})
    options = record.pop("options", {})
    if recovery := record.pop("recovery", None):
        record["recovery"] = "{steps} steps of LoRA, {trained} parameters trained".format(**recovery)
    adapters = ["full"] if "full" in config.adapters else []
    if rank := max((form for form in config.adapters if isinstance(form, int)), default=0):
        adapters.append(f"low-rank, of rank {rank} at most")
    rows = {
        **dict(sorted(record.items())),
        **{f"option `{name}`": value for name, value in sorted(options.items()) if value is not None},
        "widths": f"{min(config.widths)} to {max(config.widths)} of {config.hidden_size}",
        "adapters": " and ".join(adapters) or "none",
        "head": config.head.replace("linear", "own"),  # the name that the option has
        "parameters": f"{parameters:,}",
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


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
