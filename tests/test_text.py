"""Text becomes tokens: every format gives the same documents, calibration windows are fair, and errors are clear."""

import json
import pydoc_data.topics
import random
import zlib
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from minislice.command import inputs
from minislice.corpus import text
from minislice.corpus.embedded import stdlib_documents
from minislice.corpus.text import load_text, tokenize
from minislice.storage import checkpoint
from minislice.teaching import lecture

DOCUMENTS = ["One, in English.\nTwo lines.", "Zwei: äöü €", '{"text": "three"}', "四\u2028line separator", "5"]
ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello."},
    {"instruction": "Nothing.", "input": None, "output": "-"},
]
WIKITEXT = {"train": ["", " = A = \n", "", "Of training.\n"], "test": ["", " = B = \n", "Of the test.\n", ""]}
ALPACA_TEXT = [
    "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3",
    "### Instruction:\nGreet.\n\n### Response:\nHello.",
    "### Instruction:\nNothing.\n\n### Response:\n-",
]


def write(path, rows):
    """Documents or records, in the format that the path's name asks for."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def records(documents):
    return [{"text": document, "id": index} for index, document in enumerate(documents)]


# Files


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "book.txt").write_text("\n".join(DOCUMENTS), encoding="utf-8")
    assert load_text(str(tmp_path / "book.txt")) == ["\n".join(DOCUMENTS)]
    (tmp_path / "book.anything").write_text("\ufeffmarked", encoding="utf-8")  # some editors put a mark first
    assert load_text(str(tmp_path / "book.anything")) == ["marked"]


@pytest.mark.parametrize(
    ("name", "rows", "documents"),
    [
        *((f"rows{suffix}", DOCUMENTS, DOCUMENTS) for suffix in (".JSON", ".jsonl")),
        *((f"rows{suffix}", ALPACA, ALPACA_TEXT) for suffix in (".json", ".jsonl", ".parquet")),
        ("one.json", {"text": "alone"}, ["alone"]),
        ("one.json", "alone", ["alone"]),
    ],
)
def test_every_format_gives_the_same_documents_and_prints_nothing(name, rows, documents, tmp_path, capfd):
    write(tmp_path / name, [{"text": "before"}])
    load_text(str(tmp_path / name))
    assert load_text(write(tmp_path / name, rows)) == documents  # read again, since it has changed
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_a_file_of_wikitexts_rows_is_what_the_hub_has(suffix, hub, tmp_path):
    """Its empty rows too: without them it has fewer tokens, and another perplexity."""
    _, tokenizer = checkpoint.load("mini-opt")
    rows = WIKITEXT["train"] if suffix != ".parquet" else [row or None for row in WIKITEXT["train"]]
    stream = tokenize(load_text(write(tmp_path / f"wiki{suffix}", [{"text": row} for row in rows])), tokenizer)
    assert torch.equal(stream, tokenize(load_text("wikitext2"), tokenizer))
    assert len(stream) > len(tokenize([row for row in WIKITEXT["train"] if row], tokenizer))


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("book.txt.gz", b"\x1f\x8b", ["is compressed", "unpack it first"]),
        ("absent.txt", None, ["no text source", "embedded, wikitext2, alpaca", "path"]),
        ("empty.txt", b"", ["no text in it"]),
        ("blank rows.jsonl", b'{"text": ""}\n{"text": null}\n', ["no text in it"]),
        ("latin1.txt", b"na\xefve", ["can't read", "utf-8"]),
        ("broken.json", b'["a",', ["can't read", "as json"]),
        ("broken.jsonl", b'{"text": "a"}\n{"text"\n', ["can't read", "as json lines"]),
        ("deep.json", b"[" * 100_000, ["can't read", "as json"]),
        ("broken.parquet", b"PAR1 and no more", ["can't read", "as parquet"]),
        ("other.json", b'[{"body": "a", "title": "b"}]', ["'text'", "'instruction'", "body (str), title (str)"]),
        ("surrogate.json", b'["a \\ud800 b"]', ["no valid text", "surrogates"]),
        ("listed.json", b'[{"text": ["a", "b"]}]', ["'text'", "text (list)"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_without_text_is_refused_by_its_name(name, content, fragments, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_text(str(tmp_path / name))
    for fragment in (name, *fragments):
        assert fragment in str(error.value)


@pytest.mark.parametrize("name", [".", ""])
def test_a_folder_and_an_empty_name_are_no_text_sources(name):
    with pytest.raises(ValueError, match="no text source"):
        load_text(name)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"calibration, test.*'train'"):
        load_text("absent.txt", "train")


# The hub, which no test reaches


@pytest.fixture
def hub(monkeypatch):
    """Datasets of the hub's columns in its place."""
    prompt = "Below is an instruction that describes a task."
    rows = [{**ALPACA[index % 2], "output": str(index), "text": f"{prompt} {index}"} for index in range(20)]
    parts = {
        **{split: datasets.Dataset.from_list([{"text": row} for row in rows]) for split, rows in WIKITEXT.items()},
        "train[:90%]": datasets.Dataset.from_list(rows[:18]),
        "train[90%:]": datasets.Dataset.from_list(rows[18:]),
    }
    asked = []

    def load_dataset(*name, split):
        asked.append((*name, split))
        return parts[split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_wikitext2_calibrates_on_its_training_text_and_tests_on_its_test_text(hub):
    """One text, its empty rows kept: without them it has fewer tokens, and no printed perplexity is reached."""
    assert load_text("wikitext2") == ["\n\n = A = \n\n\n\n\nOf training.\n"]
    assert load_text("wikitext2", "test") == ["\n\n = B = \n\n\nOf the test.\n\n\n"]
    name = ("Salesforce/wikitext", "wikitext-2-raw-v1")
    assert hub == [(*name, "train"), (*name, "test")]


def test_alpacas_last_tenth_is_for_the_test(hub):
    calibration, test = load_text("alpaca"), load_text("alpaca", "test")
    assert (len(calibration), len(test)) == (18, 2) and not set(calibration) & set(test)
    assert hub == [("tatsu-lab/alpaca", "train[:90%]"), ("tatsu-lab/alpaca", "train[90%:]")]


@pytest.mark.parametrize("source", ["wikitext2", "alpaca"])
def test_offline_is_one_clear_error(source, monkeypatch, tmp_path):
    """As the tests run, with HF_HUB_OFFLINE, where nothing was fetched before."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(ValueError, match=f"can't get {source} from the hub.*embedded"):
        load_text(source)


def test_a_hub_that_fails_is_one_clear_error(monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(ValueError, match="wikitext2 from the hub: no route; give the path"):
        load_text("wikitext2")


# The embedded text


@pytest.fixture(scope="module")
def splits() -> dict[str, list[str]]:
    return {split: stdlib_documents(split) for split in ("train", "test", "calibration")}


def splits_are_disjoint(splits) -> None:
    """No document of the test is one of training; what calibrates is a part of training; all three are of some size."""
    assert set(splits["calibration"]) < set(splits["train"])
    shared = set(splits["train"]) & set(splits["test"])
    assert not [document for document in shared if len(document) > 1000]  # stubs of a few lines may be alike
    everything = sum(len(part) for part in splits.values()) - len(splits["calibration"])
    for split, share in {"train": 0.9, "test": 0.1, "calibration": 0.1}.items():
        assert abs(len(splits[split]) / everything - share) < 0.03


def test_the_embedded_splits_are_disjoint(splits):
    splits_are_disjoint(splits)


def test_the_embedded_splits_are_stable(splits):
    assert stdlib_documents("test") == splits["test"] and load_text("embedded", "test") == splits["test"]
    assert load_text("embedded") == [document for document in splits["calibration"] if document.strip()]
    topics = pydoc_data.topics.topics
    part = {name: zlib.crc32(f"topics/{name}".encode()) % 10 for name in topics}
    for split, parts in {"test": [0], "calibration": [1], "train": range(1, 10)}.items():  # by name alone, topics first
        expected = [document for name, document in topics.items() if part[name] in parts]
        assert splits[split][: len(expected)] == expected and len(expected) > 3
    assert {"calls", "lambda", "slicings"} <= {name for name in topics if part[name] == 0}  # where they always were


# Calibration and evaluation share no token


def streams_share_no_token(source: str, evaluation: str) -> None:
    """Of one file, the halves; together they are the file's tokens, in their order."""
    _, tokenizer = checkpoint.load("mini-opt")
    first, second = text.disjoint_streams(source, evaluation, tokenizer)
    whole = tokenize(load_text(source), tokenizer)
    assert torch.equal(torch.cat([first, second]), whole) and abs(len(first) - len(second)) <= 1


@pytest.fixture
def book(tmp_path) -> Path:
    (tmp_path / "book.txt").write_text("\n\n".join(list(pydoc_data.topics.topics.values())[:9]), encoding="utf-8")
    (tmp_path / "link.txt").symlink_to("book.txt")
    return tmp_path / "book.txt"


@pytest.mark.parametrize("name", ["book.txt", "link.txt", "../{folder}/book.txt"])
def test_one_file_by_whatever_name_is_halved(name, book):
    streams_share_no_token(str(book), f"{book.parent}/{name.format(folder=book.parent.name)}")


@pytest.mark.parametrize(
    ("target", "version"),
    [
        ("is_one_file", lambda right: lambda *sources: sources[0] == sources[1]),
        ("halves", lambda right: lambda stream: (stream, stream)),
    ],
    ids=["compared by name", "not halved"],
)
def test_halving_fails_on_a_mistake(target, version, book, monkeypatch):
    monkeypatch.setattr(text, target, version(getattr(text, target)))
    with pytest.raises(AssertionError):
        streams_share_no_token(str(book), f"{book.parent}/link.txt")


def test_two_sources_are_taken_whole_and_one_that_is_not_needed_is_not_read(book):
    _, tokenizer = checkpoint.load("mini-opt")
    (other := book.with_name("other.txt")).write_text("Another text, of its own.")
    first, second = text.disjoint_streams(str(book), str(other), tokenizer)
    assert torch.equal(first, tokenize(load_text(str(book)), tokenizer))
    assert torch.equal(second, tokenize(load_text(str(other)), tokenizer))
    assert torch.equal(text.disjoint_streams(str(book), None, tokenizer)[0], first)
    assert text.disjoint_streams(None, str(other), tokenizer)[0] is None


def test_every_caller_takes_its_sets_from_there(book, monkeypatch):
    """The lecture and the commands: neither makes streams of its own."""
    _, tokenizer = checkpoint.load("mini-opt")
    first, second = text.disjoint_streams(str(book), str(book), tokenizer)
    calibration, evaluation = lecture.token_sets(str(book), tokenizer, samples=3, evaluation=3, seqlen=20, seed=4)
    assert torch.equal(calibration, text.sample(first, 3, 20, 4))
    assert torch.equal(evaluation, text.sample(second, 3, 20, 4))
    for module in (lecture, inputs):
        assert module.disjoint_streams is text.disjoint_streams and not hasattr(module, "tokenize")


# Windows and samples


def samples_are_distinct_windows(samples: int, seqlen: int, spare: int, seed: int) -> None:
    """Every sample is a window of the stream, cut at a multiple of `seqlen`, none of them twice."""
    stream = torch.arange(samples * seqlen + spare)
    found = text.sample(stream, samples, seqlen, seed)
    starts = found[:, 0]
    assert torch.equal(found, starts[:, None] + torch.arange(seqlen))  # contiguous: no wrapping round, no jump
    assert (starts % seqlen == 0).all() and len(starts.unique()) == samples
    assert torch.equal(stream, torch.arange(samples * seqlen + spare))


def samples_are_seeded(samples: int, seqlen: int, spare: int, seed: int) -> None:
    """The same for the same seed, whatever else draws random numbers; another for another."""
    stream = torch.arange((samples + 30) * seqlen + spare)
    first = text.sample(stream, samples, seqlen, seed)
    state = torch.random.get_rng_state()
    others = [text.sample(stream, samples, seqlen, seed + more) for more in range(1, 9)]
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(text.sample(stream, samples, seqlen, seed), first)
    assert not all(torch.equal(other, first) for other in others)


def windows_are_the_stream_without_the_rest(samples: int, seqlen: int, spare: int, seed: int) -> None:
    stream = torch.randint(9, (samples * seqlen + spare,), generator=torch.Generator().manual_seed(seed))
    cut = text.windows(stream, seqlen)
    assert len(stream) - cut.numel() == spare % seqlen and cut.shape[1] == seqlen
    assert torch.equal(cut.flatten(), stream[: cut.numel()])
    assert torch.equal(text.windows(stream, seqlen, samples), cut[:samples])


def too_few_tokens_are_refused(samples: int, seqlen: int, spare: int, seed: int) -> None:
    """One token less than asked for is a ValueError that names the numbers; exactly as many are enough."""
    enough = torch.arange(samples * seqlen)
    assert text.sample(enough, samples, seqlen, seed).numel() == text.windows(enough, seqlen, samples).numel()
    for cut in (lambda few: text.sample(few, samples, seqlen, seed), lambda few: text.windows(few, seqlen, samples)):
        try:
            cut(enough[1:])
        except ValueError as error:
            for number in (samples, seqlen, samples * seqlen, samples * seqlen - 1):
                assert str(number) in str(error)
        else:
            raise AssertionError(f"{samples * seqlen - 1} tokens passed for {samples * seqlen}")


def with_replacement(stream, samples, seqlen, seed=0):
    starts = torch.randint(len(stream) - seqlen + 1, (samples,), generator=torch.Generator().manual_seed(seed))
    return stream[starts[:, None] + torch.arange(seqlen)]


def without_numbers(stream, seqlen, samples):
    if len(stream) < samples * seqlen:
        raise ValueError("too few tokens")


right = text.sample, text.windows
FACTS = {  # each fact, and wrong versions with which it fails
    samples_are_distinct_windows: {
        "sample": [with_replacement, lambda stream, *rest: right[0](stream.roll(1), *rest)],
    },
    samples_are_seeded: {
        "sample": [
            lambda stream, samples, seqlen, seed=0: right[0](stream, samples, seqlen, random.getrandbits(31)),
            lambda stream, samples, seqlen, seed=0: text.windows(stream, seqlen, samples),
        ]
    },
    windows_are_the_stream_without_the_rest: {
        "windows": [
            lambda stream, seqlen, samples=None: right[1](stream, seqlen).T.reshape(-1, seqlen)[:samples],
            lambda stream, seqlen, samples=None: right[1](
                torch.cat([stream, stream.new_zeros(-len(stream) % seqlen)]), seqlen, samples
            ),
        ]
    },
    too_few_tokens_are_refused: {"_require": [lambda stream, seqlen, samples: None, without_numbers]},
}


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
@given(samples=st.integers(1, 12), seqlen=st.integers(2, 9), spare=st.integers(0, 40), seed=st.integers(0, 2**31))
@example(samples=12, seqlen=2, spare=0, seed=0)
def test_fact(fact, samples, seqlen, spare, seed):
    fact(samples, seqlen, spare, seed)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.__name__)
def test_every_fact_fails_on_mistakes(fact, monkeypatch):
    for target, versions in FACTS[fact].items():
        for version in versions:
            monkeypatch.setattr(text, target, version)
            with pytest.raises(AssertionError):
                fact(samples=11, seqlen=4, spare=7, seed=5)


@pytest.mark.parametrize(("samples", "seqlen", "named"), [(0, 3, "samples"), (-1, 3, "samples"), (1, 1, "seqlen")])
def test_a_size_of_nothing_is_refused(samples, seqlen, named):
    for cut in (text.sample, lambda stream, samples, seqlen: text.windows(stream, seqlen, samples)):
        with pytest.raises(ValueError, match=f"{named} must be .* at least"):
            cut(torch.arange(50), samples, seqlen)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))).filter(str.strip), min_size=1, max_size=5))
@example(["a\u2028b", "\x85c"])
def test_documents_survive_every_format(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("rows.json", "rows.jsonl", "rows.parquet"):
        assert load_text(write(folder / name, records(documents))) == documents


def test_a_stream_is_the_documents_joined_by_an_empty_line():
    _, tokenizer = checkpoint.load("mini-opt")
    stream = tokenize(["One.", "Two."], tokenizer)
    assert stream.dtype == torch.int64 and tokenizer.decode(stream, skip_special_tokens=True) == "One.\n\nTwo."
    assert tokenize(["One.\n\nTwo."], tokenizer).equal(stream)


@pytest.mark.parametrize(
    "checksum",
    [lambda name: 1, lambda name: random.getrandbits(32)],
    ids=["puts all in one part", "is another each time"],
)
def test_disjoint_splits_fail_where_the_checksum(checksum, monkeypatch):
    monkeypatch.setattr(zlib, "crc32", checksum)
    with pytest.raises(AssertionError):
        splits_are_disjoint({split: stdlib_documents(split) for split in ("train", "test", "calibration")})
