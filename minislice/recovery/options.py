"""What recovery fine-tuning can be told, and what it reports; both in plain types."""

from dataclasses import dataclass
from functools import partial

from ..checks import option, require_flag, require_int, require_number, require_seed


@dataclass(frozen=True)
class RecoveryOptions:
    """How a sliced network is trained.

    The paper gives rank and alpha, and the command's defaults: sequences of 1024 tokens, about 1000 of WikiText-2 or
    5000 of Alpaca. All other values come from the authors' released script, and so does the choice of the linears.

    Raises:
        ValueError: an option out of its range.
    """

    rank: int = option(32, "of the LoRA matrices A and B")
    alpha: float = option(10.0, "their product B A is scaled by alpha / rank")
    dropout: float = option(0.0, "of what A reads")
    train_adapters: bool = option(False, "train the residual adapters too; else they stay what slicing made them")
    learning_rate: float = option(2e-4, "AdamW's, at its highest: it rises in the first 20th of the steps, then falls")
    epochs: float = option(1.0, "passes over the sequences")
    steps: int | None = option(None, "instead of epochs")
    accumulation: int = option(4, "forward passes whose gradients make one step")
    held_out: float = option(0.05, "share of the sequences that is not trained on, but measured every so often")
    every: int = option(16, "steps between two such measurements, and between two checkpoints")
    patience: int = option(5, "measurements without a lower loss before training stops")
    seed: int = 0

    def __post_init__(self):
        require_flag("train_adapters", self.train_adapters)
        object.__setattr__(self, "seed", require_seed(self.seed))
        checks = {
            require_int: ("rank", "accumulation", "every", "patience", *(["steps"] if self.steps is not None else [])),
            partial(require_number, above=0): ("alpha", "learning_rate", "epochs"),
            partial(require_number, below=1): ("dropout", "held_out"),
        }
        for check, names in checks.items():
            for name in names:
                object.__setattr__(self, name, check(name, getattr(self, name)))  # as Python's own number


@dataclass(frozen=True)
class RecoveryReport:
    """What recovery did; in a saved model's config too."""

    options: RecoveryOptions
    sequences: int  # trained on
    trained: int  # parameters of the LoRA matrices (and adapters)
    steps: int  # whose result the model is
    losses: list[float]  # of each step, nats a token
    held_out: list[tuple[int, float]]  # (step, perplexity) on the held-out sequences
    before: float | None  # perplexity on `evaluation`
    after: float | None
    seconds: float  # of training, in this process
