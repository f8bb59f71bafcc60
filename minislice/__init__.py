"""minislice: SliceGPT (Ashkboos et al., ICLR 2024), to read, to check and to run."""

__version__ = "0.1.0"

from .architecture import families
from .architecture.configuration import SlicedConfig
from .architecture.modeling import SlicedForCausalLM
from .depth import delete_layers
from .fusion import fuse
from .large.streaming import slice_streamed
from .measuring.budget import compress, plan_compression
from .measuring.compare import compare
from .measuring.comparison import equal_size
from .measuring.cost import parameters
from .measuring.invariance import verify
from .measuring.perplexity import perplexity
from .measuring.propose import propose
from .measuring.zero_shot import zero_shot
from .neurons import delete_neurons
from .options import SlicingOptions
from .recovery.recover import recover
from .rotation import rotate
from .self_calibration import own_text
from .slicing import slice_model
from .storage.checkpoint import export, load, save

__all__ = [
    "SlicedConfig",
    "SlicedForCausalLM",
    "SlicingOptions",
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
