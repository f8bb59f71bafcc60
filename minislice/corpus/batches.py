"""What callers may hand over as tokens, made into one thing: a list of small batches, checked before any work."""

import gc
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..checks import require_int

# A [sequences, tokens] tensor of ids, or an iterable of such tensors. Anything with an "input_ids" entry, such as a
# tokenizer's output, may stand for a tensor and brings its own "attention_mask".
Tokens = Tensor | Mapping[str, Tensor] | Iterable[Tensor | Mapping[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [sequences, tokens]
    mask: Tensor | None  # bool, [sequences, tokens]; False where padded; None where nothing is
    first_sequence: int  # where the batch stands in the whole, for messages

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), None if self.mask is None else self.mask.to(device), self.first_sequence)

    def part(self, start: int, stop: int) -> "Batch":
        """Some of its sequences, by their numbers within the batch."""
        mask = None if self.mask is None else self.mask[start:stop]
        return Batch(self.ids[start:stop], mask, self.first_sequence + start)

    @property
    def predictions(self) -> int:
        """The number of tokens that are predicted: all but a sequence's first, and none from or of padding."""
        return self.ids[:, 1:].numel() if self.mask is None else int((self.mask[:, :-1] & self.mask[:, 1:]).sum())


def count_tokens(batches: Iterable[Batch]) -> int:
    """Padding excluded."""
    return sum(batch.ids.numel() if batch.mask is None else int(batch.mask.sum()) for batch in batches)


def token_batches(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask: Tensor | Iterable[Tensor] | None,
    batch_size: int,
    least: int = 1,
) -> list[Batch]:
    """Batches of at most `batch_size` sequences; at least `least` batches, if there are so many sequences.

    The caller's tensors are never written to.

    Raises:
        ValueError: no tokens, or tokens and masks that don't fit each other or the model; a single sequence, if more
            batches are asked for. The message says what to do.
    """
    if not hasattr(model, "get_input_embeddings"):
        raise ValueError(f"expected a transformers causal language model, got {type(model).__name__}")
    batch_size = require_int("batch_size", batch_size)
    given = listed(tokens, "tokens")
    masks = [None] * len(given) if attention_mask is None else listed(attention_mask, "the attention mask")
    if len(masks) != len(given):
        raise ValueError(f"got {len(given)} batches of tokens but {len(masks)} attention masks")
    checked, sequences = [], 0
    for ids, mask in zip(given, masks, strict=True):
        if isinstance(ids, Mapping):
            if "input_ids" not in ids:
                raise ValueError(f"a batch has {', '.join(ids)} and no input_ids: call the tokenizer on its texts")
            ids, mask = ids["input_ids"], ids.get("attention_mask") if mask is None else mask
        ids, mask = _checked(model, ids, mask)
        checked.append(Batch(ids, mask, sequences))
        sequences += len(ids)
    if not checked:
        raise ValueError(
            "got no tokens: give a [sequences, tokens] tensor of ids, or an iterable of them that can be read again (a "
            "generator is empty after its first use)"
        )
    if not any(batch.mask is None or batch.mask.any() for batch in checked):
        raise ValueError("nothing to predict and nothing to calibrate on: the attention mask is 0 at every token")
    if sequences == 1 < least:
        raise ValueError("got a single calibration sequence, and some are to be held out; give more")
    size = max(min(batch_size, sequences // least), 1)
    return [batch.part(start, start + size) for batch in checked for start in range(0, len(batch.ids), size)]


def position_limit(model: PreTrainedModel) -> int | None:
    """How many tokens a sequence may have: a table of positions ends, a rotary embedding doesn't (None).

    Other tables, as those of token types, have another number of rows than the config has positions. GPT-J's table is
    a buffer.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not model.get_input_embeddings()]
    rows = [table.num_embeddings - getattr(table, "offset", 0) for table in tables]
    rows += [len(buffer) for buffer in model.buffers() if buffer.ndim == 2 and len(buffer) == positions]
    return next((number for number in rows if positions in (None, number)), None)


Result = TypeVar("Result")


def with_what_fits(run: Callable[[int], Result], batch_size: int) -> Result:
    """`run(batch_size)`; where memory isn't enough, again with half as many ...; a ValueError if not even 1 fits."""
    while True:
        try:
            return run(batch_size)
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise ValueError(f"not enough memory for one sequence at a time: {error}") from error
        gc.collect()  # outside the `except`, which holds on to every tensor of the failed run
        torch.cuda.empty_cache()
        batch_size //= 2


def listed(given: Tokens, what: str) -> list[Tensor | Mapping[str, Tensor]]:
    """Batches as a list, which can be read more than once; one tensor is a list of one."""
    if isinstance(given, (Tensor, Mapping)):
        return [given]
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise ValueError(_not_a_tensor(what, given))
    return list(given)


def _not_a_tensor(what: str, given: object) -> str:
    return (
        f"{what} must be a [sequences, tokens] tensor, or an iterable of them, got {type(given).__name__}; rows of "
        "numbers become one with torch.tensor(rows), texts and rows of different lengths with the tokenizer: "
        'tokenizer(texts, padding=True, return_tensors="pt"), tokenizer.pad({"input_ids": rows}, return_tensors="pt")'
    )


def _checked(model: PreTrainedModel, ids: object, mask: object) -> tuple[Tensor, Tensor | None]:
    table = model.get_input_embeddings()
    for what, tensor in (("tokens", ids), ("the attention mask", ids if mask is None else mask)):
        if not isinstance(tensor, Tensor):
            raise ValueError(_not_a_tensor(what, tensor))
    if ids.is_floating_point() or ids.dtype == torch.bool or ids.ndim not in (1, 2):
        raise ValueError(f"tokens must be ints of shape [sequences, tokens], got {tuple(ids.shape)} {ids.dtype}")
    if ids.numel() == 0:
        raise ValueError(f"got no tokens: their shape is {tuple(ids.shape)}")
    ids = ids.reshape(-1, ids.shape[-1])
    low, high = ids.min().item(), ids.max().item()
    if low < 0 or high >= table.num_embeddings:
        raise ValueError(
            f"token ids run from {low} to {high}, but the model's vocabulary is 0 to {table.num_embeddings - 1}; "
            "use the tokenizer that belongs to the model"
        )
    limit = position_limit(model)
    if limit is not None and ids.shape[1] > limit:
        raise ValueError(f"sequences of {ids.shape[1]} tokens, but the model has {limit} positions; cut them there")
    device = ids.device if table.weight.is_meta else table.weight.device  # meta: weights that are nowhere yet
    if mask is not None:
        if mask.ndim not in (1, 2) or (1, *mask.shape)[-2:] != ids.shape:
            raise ValueError(f"attention mask of shape {tuple(mask.shape)} for tokens of shape {tuple(ids.shape)}")
        if not ((mask == 0) | (mask == 1)).all():  # such as the 0 and -inf that are added to scores
            raise ValueError("the attention mask must hold 1 for a token and 0 for padding, and nothing else")
        mask = mask.reshape(ids.shape).to(device).bool()
        mask = None if mask.all() else mask
    return ids.to(device).long(), mask
