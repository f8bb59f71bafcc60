"""minislice: SliceGPT (Ashkboos et al., ICLR 2024), to read, to check and to run."""

from .evaluation import parameters, perplexity
from .fusion import fuse
from .rotation import rotate
from .slicing import slice_model

__all__ = ["fuse", "parameters", "perplexity", "rotate", "slice_model"]
