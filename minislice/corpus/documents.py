"""Text -> documents -> windows that carry the number of their document.

Windows of one document share its author, topic and names: they are not independent, different documents nearly are. So
the standard error of a perplexity must know which windows belong together (`measuring.paired`).
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .text import halves, load_text, tokenize, windows

TITLE = re.compile(r"^ = (?!=).*(?<!=) = $", re.MULTILINE)  # of an article of WikiText-2; its sections have " = = "


@dataclass(frozen=True)
class Windows:
    """The windows of a text, and the number of the document in which each window begins; None for a text of one."""

    ids: Int64[Tensor, "windows length"]
    documents: Int64[Tensor, " windows"] | None
    available: int  # the number of windows in the text; larger than `ids` if only the first ones are here

    def __str__(self) -> str:
        described = f"{len(self.ids)} x {self.ids.shape[1]} tokens"
        if self.documents is not None:
            count = len(self.documents.unique())
            described += f" of {count} document{'s' * (count > 1)}"
        if len(self.ids) == self.available:
            return described
        return f"{described}; a quick look: the first {len(self.ids)} of {self.available} windows"


def evaluation_windows(
    source: str, tokenizer: PreTrainedTokenizerBase, seqlen: int, samples: int | None = None, second_half: bool = False
) -> Windows:
    """The windows of a source's test split: all of them, or the first `samples`.

    Args:
        second_half: leave out the first half of the tokens, because they calibrate.
    """
    documents = load_text(source, "test")
    stream = tokenize(documents, tokenizer)
    first = len(halves(stream)[0]) if second_half else 0
    starts = document_starts(documents, tokenizer, len(stream))
    ids, available = windows(stream[first:], seqlen, samples), (len(stream) - first) // seqlen
    numbers = torch.tensor([bisect_right(starts, first + seqlen * index) - 1 for index in range(len(ids))])
    return Windows(ids, numbers if len(starts) > 1 else None, available)


def document_starts(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, tokens: int) -> list[int]:
    """The number of the first token of each document in their stream of so many tokens.

    Where a text has titles as WikiText-2 has them, each a line of one document or a document by itself, the documents
    are its articles. Tokens are counted piece by piece; at the seam of two pieces a token of the stream may join both,
    so a start may be wrong by a few tokens.
    """
    text = "\n\n".join(documents)
    places = list(accumulate((len(document) + 2 for document in documents[:-1]), initial=0))
    if len(documents) == 1:
        titles = [title.start() for title in TITLE.finditer(text)]
    else:
        titles = [place for place, row in zip(places, documents, strict=True) if TITLE.fullmatch(row.strip("\n"))]
    places = titles or places
    pieces = [text[start:stop] for start, stop in zip([0, *places[1:]], [*places[1:], None], strict=True)]
    counts = [len(ids) for ids in tokenizer(pieces, add_special_tokens=False, verbose=False)["input_ids"]]
    return [start * tokens // sum(counts) for start in accumulate(counts[:-1], initial=0)]
