"""What to keep of a model, and how."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from .adapters import FORMS
from .architecture.heads import TiedHead
from .architecture.network import Network
from .checks import (
    are_ints,
    is_int,
    is_number,
    is_several,
    require,
    require_choice,
    require_flag,
    require_int,
    require_number,
    require_seed,
)
from .heads import HEADS, require_tie, tie_obstacle
from .pca import SIGNALS

CHOICES = {
    "signal": SIGNALS,
    "adapter": FORMS,
    "head": HEADS,
    "basis": ("pca", "random", "column-norm"),
    "orientation": ("pca", "random"),
    "pca_dtype": ("float64", "float32"),
}

HELD_OUT = 8  # every eighth batch, where `reconstruct` holds some out


@dataclass(frozen=True)
class SlicingOptions:
    """What to keep and how. The width of each boundary comes from one of `slicing`, `width` and `discard`.

    Args:
        slicing: the fraction of the model's width to delete at each boundary that is sliced, 0 <= slicing < 1. The
            width is rounded down to a multiple of `multiple`. The default is 0.25, unless `width` or `discard` is
            given.
        width: the width to keep; or a list with the width of each boundary, blocks + 1 in all, the head's last.
        discard: the fraction of the variance to delete at each boundary that is sliced, 0 <= discard < 1 (appendix
            A.4). Widths then differ, and are rounded up to a multiple of `multiple`.
        multiple: see `slicing` and `discard`.
        signal: take the principal components of the norm's output, "normalized" (eq. 8), or of its input, "raw".
        slice_embedding: slice boundary 0. False leaves it whole, and gives the first block a full adapter. By default
            it is sliced unless `head` is "tied".
        slice_head: slice the last boundary, which the head reads. The paper keeps all of its D columns.
        adapter: the form of the residual adapters: "full" (the paper's), "low-rank" or "none"; see `adapters`.
        tolerance: for "low-rank": drop the directions whose cosine deficit is at most this, 0 <= tolerance <= 1. With 0
            the adapter computes exactly what "full" does.
        head: what becomes of a tied head: weights of its "own" (the paper's); "tied" as before, which is exact and
            leaves the first and the last boundary whole; or "fitted" to the sliced embedding, an approximation; see
            `heads`. The default is "tied" where that is possible and no other option narrows an end, else "own".
        neurons: beyond the paper, delete neurons of the MLPs: a fraction of each MLP's, 0 <= neurons < 1, where the
            number left is rounded down to a multiple of `multiple`; or a list with the number to leave in each MLP.
            Every expert of a mixture loses the same number; see `beyond.neurons`.
        drop: beyond the paper, leave whole blocks out: a list of their numbers. `width` has one entry fewer for each.
        repair: beyond the paper, solve for each W_out again (not a mixture's), to make up for what slicing loses; see
            `beyond.inner`.
        reconstruct: beyond the paper, move all matrices of each block after the repair; needs two calibration sequences
            or more; see `beyond.reconstruction`.
        fisher: beyond the paper, choose the neurons to delete by what they mean to the loss; see `beyond.fisher`.
        basis: keep the principal components, "pca"; a "random" subspace; or the columns of the signal with the largest
            norms, unrotated, "column-norm". The last two are there to compare with.
        orientation: keep the basis as it is, "pca", or give it a "random" rotation within the subspace that it spans.
        pca_dtype: the precision of the eigendecomposition, "float64" or "float32" (the ablation of appendix A.2).
        seed: for a "random" basis or orientation.

    Raises:
        ValueError: an option outside its range; the message names it.
    """

    slicing: float | None = None
    width: int | Sequence[int] | None = None
    discard: float | None = None
    multiple: int = 8
    signal: str = "normalized"
    slice_embedding: bool | None = None
    slice_head: bool = False
    adapter: str = "low-rank"
    tolerance: float = 0.0
    head: str | None = None
    neurons: float | Sequence[int] = 0.0
    drop: Sequence[int] = ()
    repair: bool = False
    reconstruct: bool = False
    fisher: bool = False
    basis: str = "pca"
    orientation: str = "pca"
    pca_dtype: str = "float64"
    seed: int = 0

    def __post_init__(self):
        for name, value in vars(self).items():
            object.__setattr__(self, name, _plain(value))  # how a frozen dataclass sets its own fields
        _check(self)
        object.__setattr__(self, "drop", sorted({*self.drop}))

    @classmethod
    def paper(cls, **changes) -> "SlicingOptions":
        """The paper's own setting, with `changes`: full adapters, a head with weights of its own, eq. 8's signal.

        For example ``slice_model(model, tokens, **vars(SlicingOptions.paper(slicing=0.3)))``.
        """
        return cls(**{"adapter": "full", "head": "own", "signal": "normalized", **changes})

    @property
    def beyond(self) -> str:
        """The names of the options given here that `beyond.slicing` alone carries out."""
        return ", ".join(name for name in ("neurons", "drop", "repair", "reconstruct", "fisher") if getattr(self, name))

    @property
    def least_batches(self) -> int:
        """How many batches the calibration set must have at least, if it has so many sequences."""
        return HELD_OUT if self.reconstruct else 1

    def resolved(self, net: Network) -> "SlicingOptions":
        """The same options, with the default of `head` for this network."""
        if self.head is not None:
            return self
        narrows_an_end = self.slice_embedding or self.slice_head
        if isinstance(self.width, Sequence):
            narrows_an_end |= {*self.width[:1], *self.width[-1:]} != {net.trained_width}
        return replace(self, head="own" if narrows_an_end or tie_obstacle(net) else "tied")

    def fit(self, net: Network) -> list[int | None]:
        """The width of every boundary, None where the spectrum decides; a ValueError if they don't fit the network."""
        if self.head == "fitted" and not net.head_was_tied:
            raise ValueError("head='fitted' is for models whose head shares the embedding's matrix; this one's doesn't")
        if self.head == "tied":
            require_tie(net)
        elif isinstance(net.head, TiedHead):
            raise ValueError("this model was fused with keep_tie: give head='tied', and slice neither end")
        dropped = net.numbered(self.drop)
        blocks = [block for block in net.blocks if block not in dropped]
        self.neurons_of([block.neurons for block in blocks if block.neurons])
        D, boundaries = net.trained_width, len(blocks) + 1
        ends = self.whole_ends(boundaries)
        if isinstance(self.width, Sequence):
            widths = list(self.width)
        else:
            k = self.width
            if k is None and self.discard is None:
                k = slice_width(D, 0.25 if self.slicing is None else self.slicing, self.multiple)
            widths = [k] * (boundaries - 1) + [k if self.slice_head else D]
            widths[0] = D if 0 in ends else k
        if len(widths) != boundaries:
            raise ValueError(f"got {len(widths)} widths; this model has {boundaries} boundaries (blocks + 1)")
        if not all(k is None or 1 <= k <= D for k in widths):
            raise ValueError(f"a width must be between 1 and the model's hidden size {D}, got {self.width}")
        if any(widths[boundary] != D for boundary in ends):
            cause = "head='tied' keeps both ends" if self.head == "tied" else "slice_embedding=False keeps boundary 0"
            raise ValueError(f"{cause} whole: give {D} there, got {self.width}")
        between = widths[0 in ends :]  # the block after a whole boundary has a full adapter
        if self.adapter == "none" and (None in widths or any(k > k_next for k, k_next in pairwise(between))):
            raise ValueError("adapter='none' needs a width that never shrinks; use adapter='full' where widths vary")
        return widths

    def whole_ends(self, boundaries: int) -> set[int]:
        """Boundaries that must keep their full width: the embedding's, and the head's if it is tied."""
        if self.head == "tied":
            return {0, boundaries - 1}
        return {0} if self.slice_embedding is False else set()

    def whole_boundaries(self, widths: Sequence[int | None]) -> set[int]:
        """The boundaries that stay whole: `whole_ends`; all, if there is a whole end and no boundary is narrower."""
        ends = self.whole_ends(len(widths))
        return set(range(len(widths))) if ends and len(set(widths)) == 1 else ends

    def neurons_of(self, counts: Sequence[int]) -> list[int]:
        """How many neurons to leave in each MLP; `counts` says how many it has. A ValueError if they don't fit."""
        if not isinstance(self.neurons, Sequence):
            return [slice_width(count, self.neurons, self.multiple) for count in counts]
        if len(self.neurons) != len(counts):
            raise ValueError(f"got {len(self.neurons)} numbers of neurons; this model has {len(counts)} MLPs")
        for left, count in zip(self.neurons, counts, strict=True):
            if not 0 <= left <= count:
                raise ValueError(f"can't leave {left} neurons of {count}")
        return list(self.neurons)

    def adapter_forms(self, widths: Sequence[int | None]) -> list[str]:
        """The form of each block's adapter: "full" from the model's own basis to another one, and back."""
        whole = self.whole_boundaries(widths)
        is_whole = [boundary in whole for boundary in range(len(widths))]
        return [self.adapter if here == there else "full" for here, there in pairwise(is_whole)]

    def largest_adapters(self, dimensions: int, widths: list[int]) -> list[str | int | None]:
        """The largest adapter that `adapters.make_adapter` can give to each block, as `SlicedConfig` has them.

        Args:
            dimensions: that the signal can span: D, or D - 1 where its mean is zero.
        """
        largest = []
        for form, (k, k_next) in zip(self.adapter_forms(widths), pairwise(widths), strict=True):
            r = 0 if form == "none" else max(0, min(k, dimensions - k_next))
            is_full, is_identity = form == "full" or k > k_next, r == 0 and k == k_next
            largest.append("full" if is_full else None if is_identity else r)
        return largest


def _plain(value: object) -> object:
    """Python's numbers and lists for NumPy's, which a config.json can't hold."""
    if is_several(value) and not isinstance(value, (Set, Mapping)):  # these have no order
        return [_plain(number) for number in value]
    return value.item() if hasattr(value, "item") else value


def _check(options: SlicingOptions) -> None:
    """Raise a ValueError for an option outside its range, or for two that exclude each other."""
    given = {field.name for field in fields(options) if getattr(options, field.name) is not field.default}
    for name, choices in CHOICES.items():
        if name in given:
            require_choice(name, getattr(options, name), choices)
    for name in ("slice_embedding", "slice_head", "repair", "reconstruct", "fisher"):
        if name in given:
            require_flag(name, getattr(options, name))
    for name in ("slicing", "discard"):
        if name in given:
            require_number(name, getattr(options, name), below=1)
    require_number("tolerance", options.tolerance, most=1)
    require_int("multiple", options.multiple)
    require_seed(options.seed)
    width, neurons = options.width, options.neurons
    fits = width is None or is_int(width) or (isinstance(width, Sequence) and are_ints(width))
    require(fits, "width", "a whole number, or one for each boundary", width)
    fits = (is_number(neurons) and 0 <= neurons < 1) or (isinstance(neurons, Sequence) and are_ints(neurons))
    require(fits, "neurons", "a fraction, 0 <= neurons < 1, or a whole number for each MLP", neurons)
    require(are_ints(options.drop), "drop", "a list of numbers of blocks", options.drop)
    narrowing = [name for name in ("slice_embedding", "slice_head") if getattr(options, name)]
    faults = {
        "reconstruct goes on where repair ends: give repair as well": options.reconstruct and not options.repair,
        "fisher chooses the neurons that are deleted: give neurons as well": options.fisher and neurons == 0,
        "give one of slicing, width and discard": len(given & {"slicing", "width", "discard"}) > 1,
        f"head='tied' keeps both ends whole: leave {' and '.join(narrowing)} out, or give head='own'": (
            options.head == "tied" and narrowing
        ),
        f"a list of widths says how wide both ends are: leave {' and '.join(narrowing)} out": (
            isinstance(width, Sequence) and narrowing
        ),
        "tolerance is of low-rank adapters: leave it out, or give adapter='low-rank'": (
            options.tolerance > 0 and options.adapter != "low-rank"
        ),
        f"discard reads widths off the spectrum; with basis={options.basis!r} give slicing or width": (
            options.discard is not None and options.basis != "pca"
        ),
    }
    for message, is_fault in faults.items():
        if is_fault:
            raise ValueError(message)


def slice_width(D: int, slicing: float, multiple: int = 8) -> int:
    """The width after the fraction `slicing` of D is deleted, rounded down to a multiple of `multiple`; 0 keeps D.

    The same for neurons.

    Raises:
        ValueError: nothing would be left.
    """
    if slicing == 0:
        return D
    width = int((1 - slicing) * D + 1e-6) // multiple * multiple
    if width == 0:
        raise ValueError(
            f"deleting {slicing} of {D} leaves less than one multiple of {multiple}: delete less, or lower `multiple`"
        )
    return width
