"""minislice: SliceGPT (Ashkboos et al., ICLR 2024), to read, to check and to run."""

from importlib import import_module

from .version import __version__

# Where each public name is defined. It is imported when it is first used, for torch and transformers take seconds.
PLACES = {
    "SlicedConfig": "architecture.modeling",  # what the config.json of a sliced model says
    "SlicedForCausalLM": "architecture.modeling",  # a sliced model as transformers loads it
    "SlicingOptions": "options",  # what `slice_model` can be asked for
    "compare": "beyond.compare",  # ways to make a model smaller, at equal sizes
    "compress": "beyond.budget",  # delete what costs least, down to a size
    "delete_layers": "beyond.depth",  # depth removal
    "delete_neurons": "beyond.neurons",  # make MLPs and experts narrower
    "export": "storage.checkpoint",  # save a sliced model as a stock architecture
    "families": "architecture.families",  # the table of model families; `register` adds one
    "fuse": "fusion",  # norms become RMSNorms without weights
    "load": "storage.checkpoint",  # a model and its tokenizer, dense or sliced
    "own_text": "beyond.self_calibration",  # calibration text that the model writes itself
    "parameters": "measuring.cost",  # how many a model has
    "perplexity": "likelihood",  # on a text's tokens
    "plan_compression": "beyond.budget",  # what `compress` would delete
    "propose": "measuring.propose",  # find a model's entry for the table of families
    "recover": "recovery.recover",  # LoRA fine-tuning
    "rotate": "rotation",  # rotate a model, as a whole or at each boundary
    "save": "storage.checkpoint",  # save a sliced model
    "slice_model": "beyond.slicing",  # SliceGPT
    "slice_streamed": "large.streaming",  # the same, for a model larger than memory
    "verify": "symmetries.verification",  # does a model have the invariance?
    "zero_shot": "measuring.zero_shot",  # the paper's five tasks
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
