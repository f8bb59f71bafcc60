"""Text in, token batches out: for calibration (section 3.4) and for perplexity (section 4)."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..checks import require, require_choice, require_int, require_seed
from .embedded import stdlib_documents

SOURCES = ("embedded", "wikitext2", "alpaca")
SPLITS = ("calibration", "test")
FORMATS = {".json": "json (a file with an object a line is .jsonl)", ".jsonl": "json lines", ".ndjson": "json lines"}
FORMATS |= {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv"}
OTHERWISE = "the path of a file, or 'embedded'"  # in place of a text on the hub


def load_text(source: str, split: str = "calibration") -> list[str]:
    """The documents of a source.

    Args:
        source: "embedded" (`stdlib_documents`); "wikitext2" or "alpaca", from the hub; or the path of a text (any but
            .csv and .tsv), .json, .jsonl or .ndjson, or .parquet file. In a table of a file, a document is the column
            "text", or Alpaca's instruction, input and output; a json list of strings is a list of documents. A row
            without text is a document too: joined by empty lines, a file of WikiText-2's rows gives what "wikitext2"
            gives.
        split: "calibration" or "test". Alpaca has one split, its last tenth serves for the test; a file is taken whole
            for either.

    Raises:
        ValueError: no such source, it can't be read or reached, or there is nothing in it.
    """
    require_choice("split", split, SPLITS)
    if source == "embedded":
        documents = [text for text in stdlib_documents(split) if text.strip()]
    elif source in SOURCES:
        documents = _from_hub(source, split)
    elif isinstance(source, (str, Path)) and os.path.isfile(source):
        documents = _read_file(Path(source))
    else:
        given = str(source)[:80]
        raise ValueError(f"no text source {given!r}: give {', '.join(SOURCES)}, or the path of a file that exists")
    if not any(text.strip() for text in documents):
        raise ValueError(f"{source} has no text in it")
    return documents


def require_hub(name: str, otherwise: str) -> None:
    """Raise a ValueError unless the Hugging Face hub answers, or HF_HUB_OFFLINE forbids to ask it.

    The hub's own libraries ask five times, for half a minute.

    Args:
        name: what is wanted from the hub.
        otherwise: what the user can give in its place.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception as error:  # of whatever library the hub's client is made with
        raise ValueError(
            f"can't get {name} from the hub: {constants.ENDPOINT} can't be reached ({error}); give {otherwise}, or set "
            "HF_HUB_OFFLINE=1 if it was fetched before"
        ) from error


def _from_hub(source: str, split: str) -> list[str]:
    import datasets  # takes a second, which nothing else waits for

    require_hub(source, OTHERWISE)
    try:
        if source == "wikitext2":
            part = {"calibration": "train", "test": "test"}[split]
            rows = datasets.load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split=part)["text"]
            return ["\n\n".join(rows)]  # one text, its empty rows too: the protocol of every published perplexity
        part = {"calibration": "train[:90%]", "test": "train[90%:]"}[split]
        return [_document(row) for row in datasets.load_dataset("tatsu-lab/alpaca", split=part)]
    except OSError as error:  # a ConnectionError is one
        raise ValueError(f"can't get {source} from the hub: {error}; give {OTHERWISE}") from error


def _read_file(path: Path) -> list[str]:
    suffix = path.suffix.lower()
    try:
        return [require_unicode(_document(row)) for row in _rows(path, suffix)]
    except (ValueError, OSError) as error:
        raise ValueError(f"can't read {path} as {FORMATS.get(suffix, 'UTF-8 text')}: {error}") from error


def _rows(path: Path, suffix: str) -> list:
    if suffix in (".csv", ".tsv"):
        raise ValueError("minislice reads no such tables; save it as json lines, or rename it to .txt to take it whole")
    if suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).to_pylist()
    if FORMATS.get(suffix) == "json lines":
        return [row for _, row in json_lines(path)]
    if suffix == ".json":
        rows = json.loads(read_utf8(path))
        return rows if isinstance(rows, list) else [rows]
    return [read_utf8(path)]


def read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # without the mark that some editors put first
    except UnicodeDecodeError as error:
        raise ValueError(f"{error}; save it as UTF-8 (unpack it first if it is compressed)") from error


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The values in a file of json lines, each with the number of its line, from 1; empty lines are left out."""
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error


def _document(row: object) -> str:
    fields = row if isinstance(row, dict) else {"text": row}
    if {"instruction", "output"} <= fields.keys() and not fields.get("text"):
        parts = {"Instruction": row["instruction"], "Input": row.get("input"), "Response": row["output"]}
        return "\n\n".join(f"### {title}:\n{part}" for title, part in parts.items() if part)
    text = fields.get("text", fields)
    if text is None or isinstance(text, str):
        return text or ""  # WikiText-2 has many empty rows
    given = ", ".join(f"{name} ({type(value).__name__})" for name, value in fields.items())
    what = "a document is a string, or has a string in a field 'text', or Alpaca's 'instruction' and 'output'"
    raise ValueError(f"{what}; found {given}")


def require_unicode(text: str) -> str:
    """The same text; a ValueError for lone surrogates, which a JSON escape can make and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"no valid text: {error}") from error
    return text


def tokenize(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Int64[Tensor, " tokens"]:
    """The documents, joined by an empty line, as one stream of token ids; a string is one document."""
    documents = [documents] if isinstance(documents, str) else documents
    return torch.tensor(tokenizer("\n\n".join(documents), verbose=False)["input_ids"])


def disjoint_streams(
    calibration: str | None, evaluation: str | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[Int64[Tensor, " first"] | None, Int64[Tensor, " second"] | None]:
    """The token streams of two sources of `load_text`, which share no token; None for a source that isn't needed.

    The two splits of a source have no document in common. A file has no splits: where one is to serve for both, its
    first half calibrates and its second is measured on.
    """
    if is_one_file(calibration, evaluation):
        return halves(tokenize(load_text(calibration), tokenizer))
    texts = zip((calibration, evaluation), SPLITS, strict=True)
    first, second = (source and tokenize(load_text(source, split), tokenizer) for source, split in texts)
    return first, second


def is_one_file(calibration: str | None, evaluation: str | None) -> bool:
    """Whether two sources are the same file, by whatever names."""
    files = [Path(source) for source in (calibration, evaluation) if source is not None and source not in SOURCES]
    return len(files) == 2 and all(map(os.path.isfile, files)) and files[0].samefile(files[1])


def halves(stream: Int64[Tensor, " tokens"]) -> tuple[Int64[Tensor, " first"], Int64[Tensor, " second"]]:
    middle = len(stream) // 2
    return stream[:middle], stream[middle:]


def windows(
    stream: Int64[Tensor, " tokens"], seqlen: int, samples: int | None = None
) -> Int64[Tensor, "sequences seqlen"]:
    """The stream cut into windows of `seqlen` tokens, what is left over dropped; all of them, or the first `samples`.

    The paper's perplexity is over all windows of WikiText-2's test text (section 4).

    Raises:
        ValueError: the stream has fewer tokens than asked for.
    """
    what = "a tensor of shape [tokens], as `tokenize` returns it"
    require(isinstance(stream, Tensor) and stream.ndim == 1, "the stream", what, stream)
    least = require_int("samples", 1 if samples is None else samples)
    if len(stream) < least * require_int("seqlen", seqlen, least=2):
        raise ValueError(
            f"asked for {least} sequences of {seqlen} tokens, {least * seqlen} in all, but the text has {len(stream)}; "
            "ask for fewer or shorter ones, or give more text"
        )
    return stream[: len(stream) // seqlen * seqlen].view(-1, seqlen)[:samples]


def sample(
    stream: Int64[Tensor, " tokens"], samples: int, seqlen: int, seed: int = 0
) -> Int64[Tensor, "samples seqlen"]:
    """A calibration set: `samples` windows of `seqlen` tokens, no two overlapping, drawn at random.

    The paper takes 1024 or 128 windows of 2048 tokens of the training text (section 4, appendix A.1).

    Raises:
        ValueError: the stream has fewer tokens than asked for.
    """
    windows(stream, seqlen, require_int("samples", samples))  # there are enough
    cut = windows(stream, seqlen)
    generator = torch.Generator().manual_seed(require_seed(seed))
    order = torch.randperm(len(cut), generator=generator, device="cpu")
    return cut[order[:samples]]
