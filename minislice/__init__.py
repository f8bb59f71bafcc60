"""minislice: SliceGPT (Ashkboos et al., ICLR 2024), to read, to check and to run."""

from importlib import import_module

from .version import __version__

# Where each public name is defined. It is imported when it is first used, for torch and transformers take seconds.
PLACES = {
    "SlicedConfig": "architecture.modeling",
    "SlicedForCausalLM": "architecture.modeling",
    "SlicingOptions": "options",
    "compare": "beyond.compare",
    "compress": "beyond.budget",
    "delete_layers": "beyond.depth",
    "delete_neurons": "beyond.neurons",
    "export": "storage.checkpoint",
    "families": "architecture.families",
    "fuse": "fusion",
    "load": "storage.checkpoint",
    "own_text": "beyond.self_calibration",
    "parameters": "measuring.cost",
    "perplexity": "likelihood",
    "plan_compression": "beyond.budget",
    "propose": "measuring.propose",
    "recover": "recovery.recover",
    "rotate": "rotation",
    "save": "storage.checkpoint",
    "slice_model": "beyond.slicing",
    "slice_streamed": "large.streaming",
    "verify": "symmetries.verification",
    "zero_shot": "measuring.zero_shot",
}
__all__ = ["__version__", *PLACES]


def __getattr__(name: str):
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = import_module(f".{PLACES[name]}", __name__)
    globals()[name] = getattr(place, name, place)  # `families` is the file itself
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *PLACES})
