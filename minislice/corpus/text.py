"""Text in, token batches out: for calibration (section 3.4) and for perplexity (section 4)."""

import json
from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow.parquet
import torch
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .embedded import stdlib_documents

SOURCES = ("embedded", "wikitext2", "alpaca")
SPLITS = ("calibration", "test")


def load_text(source: str, split: str = "calibration") -> list[str]:
    """The documents of a source.

    Args:
        source: "embedded" (`stdlib_documents`); "wikitext2" or "alpaca", from the hub; or the path of a .txt (or any
            other text), .json, .jsonl or .parquet file. In a table of a file, a document is the column "text", or
            Alpaca's instruction, input and output; a json list of strings is a list of documents.
        split: "calibration" or "test". Alpaca has one split, its last tenth serves for the test; a file is taken whole
            for either.

    Raises:
        ValueError: no such source, it can't be read or reached, or there is nothing in it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    if source == "embedded":
        documents = stdlib_documents(split)
    elif source in SOURCES:
        documents = _from_hub(source, split)
    else:
        documents = _read_file(Path(source))
    documents = [text for text in documents if text.strip()]
    if not documents:
        raise ValueError(f"{source} has no text in it")
    return documents


def _from_hub(source: str, split: str) -> list[str]:
    try:
        if source == "wikitext2":
            part = {"calibration": "train", "test": "test"}[split]
            rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=part)["text"]
            return ["\n\n".join(rows)]  # one text, its empty rows too: the protocol of every published perplexity
        part = {"calibration": "train[:90%]", "test": "train[90%:]"}[split]
        return [_document(row) for row in datasets.load_dataset("tatsu-lab/alpaca", split=part)]
    except OSError as error:  # a ConnectionError is one
        raise ValueError(f"can't get {source} from the hub: {error}; give the path of a file, or 'embedded'") from error


def _read_file(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"no text source {str(path)!r}: give {', '.join(SOURCES)}, or the path of a file that exists")
    kind = {".json": "json", ".jsonl": "json lines", ".parquet": "parquet"}.get(path.suffix.lower(), "utf-8 text")
    try:
        if kind == "parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            text = path.read_text(encoding="utf-8-sig")  # without the mark that some editors put first
            rows = [text]
            if kind == "json":
                rows = json.loads(text)
                rows = rows if isinstance(rows, list) else [rows]
            elif kind == "json lines":
                rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"can't read {path} as {kind}: {error}") from error
    try:
        return [_document(row) for row in rows]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _document(row: object) -> str:
    if isinstance(row, str):
        return row
    fields = row if isinstance(row, dict) else {}
    text = fields.get("text", 0)
    if isinstance(text, str) and text:
        return text
    if {"instruction", "output"} <= fields.keys():
        parts = {"Instruction": row["instruction"], "Input": row.get("input"), "Response": row["output"]}
        return "\n\n".join(f"### {title}:\n{text}" for title, text in parts.items() if text)
    if text in ("", None):  # a row of nothing, as WikiText has many
        return ""
    found = ", ".join(f"{name} ({type(value).__name__})" for name, value in fields.items()) or type(row).__name__
    raise ValueError(
        f"a document is a string, or has a string in a field 'text', or Alpaca's 'instruction' and 'output'; "
        f"found {found}"
    )


def tokenize(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Int64[Tensor, " tokens"]:
    """The documents, joined by an empty line, as one stream of token ids."""
    return torch.tensor(tokenizer("\n\n".join(documents), verbose=False)["input_ids"])


def windows(
    stream: Int64[Tensor, " tokens"], seqlen: int, samples: int | None = None
) -> Int64[Tensor, "sequences seqlen"]:
    """The stream cut into windows of `seqlen` tokens, what is left over dropped; all of them, or the first `samples`.

    The paper's perplexity is over all windows of WikiText-2's test text (section 4).

    Raises:
        ValueError: the stream has fewer tokens than asked for.
    """
    _require(stream, seqlen, 1 if samples is None else samples)
    return stream[: len(stream) // seqlen * seqlen].view(-1, seqlen)[:samples]


def sample(
    stream: Int64[Tensor, " tokens"], samples: int, seqlen: int, seed: int = 0
) -> Int64[Tensor, "samples seqlen"]:
    """A calibration set: `samples` windows of `seqlen` tokens, no two overlapping, drawn at random.

    The paper takes 1024 or 128 windows of 2048 tokens of the training text (section 4, appendix A.1).

    Raises:
        ValueError: the stream has fewer tokens than asked for.
    """
    _require(stream, seqlen, samples)
    cut = windows(stream, seqlen)
    order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(seed))
    return cut[order[:samples]]


def _require(stream: Tensor, seqlen: int, samples: int) -> None:
    if seqlen < 2 or samples < 1:
        raise ValueError(f"need at least 1 sequence of 2 tokens, got {samples} of {seqlen}")
    if len(stream) < samples * seqlen:
        raise ValueError(
            f"asked for {samples} sequences of {seqlen} tokens, {samples * seqlen} in all, but the text has "
            f"{len(stream)}; ask for fewer or shorter ones, or give more text"
        )
