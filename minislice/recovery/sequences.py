"""What recovery fine-tuning trains on: sequences, the predictions in them that count, and a part held out.

The predictions that count are those of `perplexity`: every token but a sequence's first is predicted. Padding neither
predicts nor is predicted.
"""

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..corpus.batches import Batch

IGNORED = -100  # the label that torch's cross entropy leaves out


def labels(
    ids: Int64[Tensor, "sequences tokens"], mask: Bool[Tensor, "sequences tokens"]
) -> Int64[Tensor, "sequences tokens"]:
    """The ids, where their prediction counts, else `IGNORED`; transformers' losses shift them themselves."""
    counts = mask.clone()
    counts[:, 0] = False
    counts[:, 1:] &= mask[:, :-1]
    return torch.where(counts, ids, IGNORED)


def rows(batches: list[Batch]) -> list[dict[str, Tensor]]:
    """One row for each sequence in which something is predicted, on the CPU; a ValueError if there is none."""
    sequences = []
    for batch in batches:
        masks = torch.ones_like(batch.ids) if batch.mask is None else batch.mask.long()
        for ids, mask in zip(batch.ids.cpu(), masks.cpu(), strict=True):
            if (mask[1:] & mask[:-1]).any():
                sequences.append({"input_ids": ids, "attention_mask": mask})
    if not sequences:
        raise ValueError("nothing to predict: every sequence has a single token, or is padding")
    return sequences


def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Rows as one batch, as the model's forward takes it; shorter ones are padded on the right."""
    padded = {name: pad_sequence([row[name] for row in batch], batch_first=True) for name in batch[0]}
    return {**padded, "labels": labels(padded["input_ids"], padded["attention_mask"].bool())}


def split(sequences: list[dict[str, Tensor]], share: float) -> tuple[list, list]:
    """What to train on, and the last `share` of the sequences, which is held out; a ValueError if nothing is left."""
    held_out = max(1, round(share * len(sequences))) if share else 0
    if (cut := len(sequences) - held_out) <= 0:
        raise ValueError(
            f"{len(sequences)} sequences, {held_out} of them held out, leave none to train on; give more, or "
            "held_out=0, without early stopping"
        )
    return sequences[:cut], sequences[cut:]


def require_disjoint(training: list[dict[str, Tensor]], evaluation: list[dict[str, Tensor]]) -> None:
    """Raise a ValueError where a sequence is both trained on and measured on."""

    def tokens(row: dict[str, Tensor]) -> tuple[int, ...]:
        return tuple(row["input_ids"][row["attention_mask"].bool()].tolist())

    known = set(map(tokens, training))
    if common := sum(tokens(row) in known for row in evaluation):
        raise ValueError(
            f"{common} of the {len(evaluation)} evaluation sequences are among the {len(training)} to train on; what a "
            "model was trained on says nothing of what was recovered: evaluate on another text"
        )
