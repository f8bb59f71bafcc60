"""minislice: SliceGPT (Ashkboos et al., ICLR 2024), to read, to check and to run."""

__version__ = "0.1.0"

from .checkpoint import export, load, save
from .comparison import equal_size
from .evaluation import parameters, perplexity
from .fusion import fuse
from .invariance import verify
from .modeling import SlicedConfig, SlicedForCausalLM
from .rotation import rotate
from .slicing import slice_model
from .streaming import slice_streamed

__all__ = [
    "SlicedConfig",
    "SlicedForCausalLM",
    "equal_size",
    "export",
    "fuse",
    "load",
    "parameters",
    "perplexity",
    "rotate",
    "save",
    "slice_model",
    "slice_streamed",
    "verify",
]
