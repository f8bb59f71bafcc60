"""What callers may hand over as tokens, made into one thing: a list of small batches, checked before any work."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

# A [sequences, tokens] tensor of ids, or an iterable of such tensors. Anything with an "input_ids" entry, such as a
# tokenizer's output, may stand for a tensor and brings its own "attention_mask".
Tokens = Tensor | Mapping[str, Tensor] | Iterable[Tensor | Mapping[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    ids: Tensor  # [sequences, tokens], on the model's device
    mask: Tensor | None  # bool, [sequences, tokens]; False where padded; None where nothing is
    first_sequence: int  # where the batch stands in the whole, for messages


def count_tokens(batches: Iterable[Batch]) -> int:
    """How many there are, padding excluded."""
    return sum(batch.ids.numel() if batch.mask is None else int(batch.mask.sum()) for batch in batches)


def token_batches(
    model: PreTrainedModel, tokens: Tokens, attention_mask: Tensor | Iterable[Tensor] | None, batch_size: int
) -> list[Batch]:
    """Batches of at most `batch_size` sequences. The caller's tensors are never written to.

    Raises:
        ValueError: nothing to process, a shape or dtype that isn't [sequences, tokens] of ints, an id outside the
            vocabulary, a mask of another shape, more tokens than the model has positions.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    whole = [tokens] if isinstance(tokens, (Tensor, Mapping)) else list(tokens)
    if attention_mask is None or isinstance(attention_mask, Tensor):
        masks = [attention_mask] * (1 if isinstance(attention_mask, Tensor) else len(whole))
    else:
        masks = list(attention_mask)
    if len(masks) != len(whole):
        raise ValueError(f"got {len(whole)} batches of tokens but {len(masks)} attention masks")
    batches, sequences = [], 0
    for ids, mask in zip(whole, masks, strict=True):
        if isinstance(ids, Mapping):
            ids, mask = ids["input_ids"], ids.get("attention_mask") if mask is None else mask
        ids, mask = _checked(model, ids, mask)
        parts = zip(ids.split(batch_size), [None] * len(ids) if mask is None else mask.split(batch_size), strict=False)
        for part, part_mask in parts:
            batches.append(Batch(part, part_mask, sequences))
            sequences += len(part)
    if not batches:
        raise ValueError("got no tokens: give a [sequences, tokens] tensor of ids, or an iterable of them")
    return batches


def _checked(model: PreTrainedModel, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    table = model.get_input_embeddings()
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.ndim not in (1, 2):
        what = f"{tuple(ids.shape)} {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"tokens must be ints of shape [sequences, tokens], got {what}")
    if ids.numel() == 0:
        raise ValueError(f"got no tokens: their shape is {tuple(ids.shape)}")
    ids = ids.reshape(-1, ids.shape[-1])
    low, high = ids.min().item(), ids.max().item()
    if low < 0 or high >= table.num_embeddings:
        raise ValueError(
            f"token ids run from {low} to {high}, but the model's vocabulary is 0 to {table.num_embeddings - 1}; "
            "use the tokenizer that belongs to the model"
        )
    for other in model.modules():  # a table of positions ends; a rotary embedding doesn't
        if isinstance(other, nn.Embedding) and other is not table:
            limit = other.num_embeddings - getattr(other, "offset", 0)
            if ids.shape[1] > limit:
                raise ValueError(
                    f"sequences of {ids.shape[1]} tokens, but the model has {limit} positions; cut them to {limit}"
                )
    device = ids.device if table.weight.is_meta else table.weight.device  # meta: weights that are nowhere yet
    if mask is not None:
        if tuple(mask.reshape(-1, mask.shape[-1]).shape) != tuple(ids.shape):
            raise ValueError(f"attention mask of shape {tuple(mask.shape)} for tokens of shape {tuple(ids.shape)}")
        mask = mask.reshape(ids.shape).to(device).bool()
        mask = None if mask.all() else mask
    return ids.to(device).long(), mask
