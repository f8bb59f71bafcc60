"""minislice: SliceGPT (Ashkboos et al., ICLR 2024), to read, to check and to run."""

from .architecture import families
from .architecture.configuration import SlicedConfig
from .architecture.modeling import SlicedForCausalLM
from .beyond.budget import compress, plan_compression
from .beyond.compare import compare
from .beyond.depth import delete_layers
from .beyond.neurons import delete_neurons
from .beyond.self_calibration import own_text
from .beyond.slicing import slice_model
from .fusion import fuse
from .invariance import verify
from .large.streaming import slice_streamed
from .measuring.comparison import equal_size
from .measuring.cost import parameters
from .measuring.propose import propose
from .measuring.zero_shot import zero_shot
from .options import SlicingOptions
from .perplexity import perplexity
from .recovery.recover import recover
from .rotation import rotate
from .storage.checkpoint import export, load, save
from .version import __version__

__all__ = [
    "SlicedConfig",
    "SlicedForCausalLM",
    "SlicingOptions",
    "__version__",
    "compare",
    "compress",
    "delete_layers",
    "delete_neurons",
    "equal_size",
    "export",
    "families",
    "fuse",
    "load",
    "own_text",
    "parameters",
    "perplexity",
    "plan_compression",
    "propose",
    "recover",
    "rotate",
    "save",
    "slice_model",
    "slice_streamed",
    "verify",
    "zero_shot",
]
