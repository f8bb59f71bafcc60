"""Text becomes tokens: every format gives the same documents, calibration windows are fair, and errors are clear."""

import json
import pydoc_data.topics
import random
import zlib

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from minislice.corpus import documents as windowed
from minislice.corpus import text
from minislice.corpus.embedded import stdlib_documents
from minislice.corpus.text import load_text, tokenize
from minislice.storage import checkpoint

ALPACA = [
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    {"instruction": "Greet.", "input": "", "output": "Hello."},
]
ALPACA_TEXT = [
    "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3",
    "### Instruction:\nGreet.\n\n### Response:\nHello.",
]
WIKITEXT = ["", " = A = \n", "", "Of training.\n"]
HUB = {  # the names and the split of what the hub has, and its rows
    ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"): [{"text": row} for row in WIKITEXT],
    ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"): [{"text": "Of the test.\n"}, {"text": ""}],
    ("tatsu-lab/alpaca", "train[:90%]"): [{**ALPACA[0], "text": "A prompt. 3"}],
    ("tatsu-lab/alpaca", "train[90%:]"): [{**ALPACA[1], "text": "Another prompt. Hello."}],
}


@pytest.fixture(scope="module")
def tokenizer():
    return checkpoint.load_tokenizer(checkpoint.locate("mini-opt"))


def write(path, rows) -> str:
    """Documents or records, in the format that the path's name asks for."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def test_a_text_file_is_one_document_without_its_mark_and_so_is_a_string(tokenizer, tmp_path):
    assert torch.equal(tokenize("def f", tokenizer), tokenize(["def f"], tokenizer))
    (tmp_path / "book.anything").write_text("\ufeffone\n\ntwo: äöü €", encoding="utf-8")
    assert load_text(str(tmp_path / "book.anything")) == ["one\n\ntwo: äöü €"]


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))).filter(str.strip), min_size=1, max_size=5))
@example(["a\u2028b", "\x85c", '{"text": "three"}'])
def test_documents_survive_every_format(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("rows")
    for name in ("rows.JSON", "rows.jsonl", "rows.ndjson", "rows.parquet"):
        records = [{"text": document, "id": index} for index, document in enumerate(documents)]
        assert load_text(write(folder / name, records)) == documents
    assert load_text(write(folder / "list.json", documents)) == documents
    assert load_text(write(folder / "one.json", documents[0])) == documents[:1]


def test_records_of_alpaca_are_read_and_nothing_is_printed(tmp_path, capfd):
    for name in ("rows.json", "rows.parquet"):
        assert load_text(write(tmp_path / name, ALPACA)) == ALPACA_TEXT
    assert capfd.readouterr() == ("", "")


def test_a_file_of_wikitexts_rows_has_the_tokens_of_the_hub_and_so_its_empty_rows(hub, tokenizer, tmp_path):
    rows = [{"text": row or None} for row in WIKITEXT]
    stream = tokenize(load_text(write(tmp_path / "wiki.parquet", rows)), tokenizer)
    assert torch.equal(stream, tokenize(load_text("wikitext2"), tokenizer))
    assert len(stream) > len(tokenize([row for row in WIKITEXT if row], tokenizer))


NO_TEXT = {  # a file's name, what is in it, and what the error says
    "empty.txt": (b"", "no text in it"),
    "latin1.txt": (b"na\xefve", "can't read .* as UTF-8 text: .*; save it as UTF-8"),
    "table.csv": (b"id,text\n1,a\n", "can't read .* as csv: .* save it as json lines, or rename it"),
    "lines.json": (b'{"text": "a"}\n{"text": "b"}\n', "as json .a file with an object a line is .jsonl"),
    "broken.jsonl": (b'{"text": "a"}\n{"text"\n', "can't read .* as json lines: line 2, column 8: Expecting"),
    "broken.parquet": (b"PAR1 and no more", "can't read .* as parquet"),
    "surrogate.json": (b'["a \\ud800 b"]', "no valid text.* surrogates"),
    "other.json": (b'[{"body": "a", "title": "b"}]', r"'text', or .*'instruction'.* body \(str\), title \(str\)"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_a_file_without_text_is_refused_by_its_name(name, tmp_path):
    content, message = NO_TEXT[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_text(str(tmp_path / name))
    assert name in str(error.value)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("given", ["absent.txt", "a text " * 1000, ["a list of texts"]], ids=["path", "text", "list"])
def test_what_is_no_text_source_is_refused(given):
    with pytest.raises(ValueError, match=r"no text source .*or the path of a file that exists"):
        load_text(given)


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub, which no test reaches."""

    def load_dataset(*names, split):
        return datasets.Dataset.from_list(HUB[(*names, split)])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_calibration_and_test_are_different_parts_of_a_dataset(hub):
    assert load_text("wikitext2") == ["\n\n = A = \n\n\n\n\nOf training.\n"]  # one text: the protocol of perplexity
    assert load_text("wikitext2", "test") == ["Of the test.\n\n\n"]
    assert load_text("alpaca") == ["A prompt. 3"]
    assert load_text("alpaca", "test") == ["Another prompt. Hello."]
    with pytest.raises(ValueError, match="split must be one of calibration, test, got 'train'"):
        load_text("wikitext2", "train")


def splits_are_disjoint() -> None:
    """No document of the test is one of training; what calibrates is a part of training; all three are of some size."""
    splits = {split: stdlib_documents(split) for split in ("train", "test", "calibration")}
    assert set(splits["calibration"]) < set(splits["train"])
    shared = set(splits["train"]) & set(splits["test"])
    assert not [document for document in shared if len(document) > 1000]  # stubs of a few lines may be alike
    everything = len(splits["train"]) + len(splits["test"])
    for split in ("test", "calibration"):
        assert abs(len(splits[split]) / everything - 0.1) < 0.03


def test_the_embedded_splits_are_disjoint_and_depend_on_names_alone(monkeypatch):
    splits_are_disjoint()
    topics = pydoc_data.topics.topics
    in_test = [name for name in topics if zlib.crc32(f"topics/{name}".encode()) % 10 == 0]
    assert {"calls", "lambda", "slicings"} <= set(in_test)  # where they always were
    assert load_text("embedded", "test")[: len(in_test)] == [topics[name] for name in in_test]
    monkeypatch.setattr(zlib, "crc32", lambda name: random.getrandbits(32))
    with pytest.raises(AssertionError):
        splits_are_disjoint()


def the_halves_of_a_file_share_no_token(folder, tokenizer) -> None:
    """By whatever name it is given; together they are the file's tokens, in their order."""
    for name in ("book.txt", "link.txt"):
        first, second = text.disjoint_streams(f"{folder}/book.txt", f"{folder}/{name}", tokenizer)
        whole = tokenize(load_text(f"{folder}/book.txt"), tokenizer)
        assert torch.equal(torch.cat([first, second]), whole) and abs(len(first) - len(second)) <= 1


@pytest.mark.parametrize(
    ("target", "wrong"),
    [("is_one_file", lambda first, second: first == second), ("halves", lambda stream: (stream, stream))],
    ids=["names are compared", "both are the whole"],
)
def test_one_file_for_both_is_halved_and_a_mistake_is_found(target, wrong, tokenizer, tmp_path, monkeypatch):
    (tmp_path / "book.txt").write_text("\n\n".join(list(pydoc_data.topics.topics.values())[:9]), encoding="utf-8")
    (tmp_path / "link.txt").symlink_to("book.txt")
    the_halves_of_a_file_share_no_token(tmp_path, tokenizer)
    monkeypatch.setattr(text, target, wrong)
    with pytest.raises(AssertionError):
        the_halves_of_a_file_share_no_token(tmp_path, tokenizer)


def samples_are_distinct_windows(samples: int, seqlen: int, spare: int, seed: int) -> None:
    """Every sample is a window of the stream, cut at a multiple of `seqlen`, none of them twice."""
    stream = torch.arange(samples * seqlen + spare)
    found = text.sample(stream, samples, seqlen, seed)
    starts = found[:, 0]
    assert torch.equal(found, starts[:, None] + torch.arange(seqlen))  # contiguous: no wrapping round, no jump
    assert (starts % seqlen == 0).all() and len(starts.unique()) == samples


def samples_are_seeded(samples: int, seqlen: int, spare: int, seed: int) -> None:
    """The same for the same seed, whatever else draws random numbers; another for another."""
    stream = torch.arange((samples + 30) * seqlen + spare)
    state = torch.random.get_rng_state()
    first, again, *others = (text.sample(stream, samples, seqlen, seed + more) for more in (0, *range(9)))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(again, first) and not all(torch.equal(other, first) for other in others)


def windows_are_the_stream_without_the_rest(samples: int, seqlen: int, spare: int, seed: int) -> None:
    stream = torch.randint(9, (samples * seqlen + spare,), generator=torch.Generator().manual_seed(seed))
    cut = text.windows(stream, seqlen)
    assert len(stream) - cut.numel() == spare % seqlen and cut.shape[1] == seqlen
    assert torch.equal(cut.flatten(), stream[: cut.numel()])
    assert torch.equal(text.windows(stream, seqlen, samples), cut[:samples])


sample, windows = text.sample, text.windows
MISTAKES = {  # of each fact: a wrong version of the function that it is about
    samples_are_distinct_windows: ("sample", lambda stream, *rest: sample(stream.roll(1), *rest)),
    samples_are_seeded: ("sample", lambda *given: sample(*given[:3], random.getrandbits(31))),
    windows_are_the_stream_without_the_rest: ("windows", lambda stream, *rest: windows(stream.roll(1), *rest)),
}


@given(samples=st.integers(1, 12), seqlen=st.integers(2, 9), spare=st.integers(0, 40), seed=st.integers(0, 2**31))
@example(samples=12, seqlen=2, spare=0, seed=0)
def test_samples_and_windows(samples, seqlen, spare, seed):
    for fact in MISTAKES:
        fact(samples, seqlen, spare, seed)


@pytest.mark.parametrize("fact", MISTAKES, ids=lambda fact: fact.__name__)
def test_every_fact_fails_on_a_mistake(fact, monkeypatch):
    monkeypatch.setattr(text, *MISTAKES[fact])
    with pytest.raises(AssertionError):
        fact(samples=11, seqlen=4, spare=7, seed=5)


def test_too_few_tokens_are_refused_with_the_numbers(unchecked):
    stream = torch.arange(12)
    with pytest.raises(ValueError, match=r"the stream must be a tensor of shape \[tokens\]"):
        text.windows(stream[None], 4)
    assert text.sample(stream, 3, 4).numel() == text.windows(stream, 4, 3).numel() == 12
    for cut in (text.sample, lambda stream, samples, seqlen: text.windows(stream, seqlen, samples)):
        with pytest.raises(ValueError, match="3 sequences of 4 tokens, 12 in all, but the text has 11"):
            cut(stream[1:], 3, 4)
    with torch.device("meta"):
        chosen = text.sample(stream, 3, 4)
    assert torch.equal(chosen, text.sample(stream, 3, 4))


ARTICLES = [
    f" = Title {n} = \n a = b , = = c\n\n = = Section = = \n def f{n} ( x ) : return {'x + ' * 9 * n} 1\n"
    for n in range(4)
]


def test_a_document_starts_where_its_own_tokens_start(tokenizer):
    """Articles begin at their titles, and not at sections, in one text and in its rows; other documents have none."""
    rows = ["", *"\n".join(ARTICLES).splitlines(keepends=True)]
    others = [f"Title {n} " * (n + 3) for n in range(5)]
    one_like_an_article = [*others[:4], ARTICLES[0]]
    cases = ((["\n".join(ARTICLES)], 4), (["\n\n".join(rows)], 4), (rows, 4), (others, 5), (one_like_an_article, 5))
    for documents, number in cases:
        stream = tokenize(documents, tokenizer)
        starts = windowed.document_starts(documents, tokenizer, len(stream))
        assert len(starts) == number
        for start in starts:
            assert "Title" in tokenizer.decode(stream[max(start - 4, 0) : start + 12])


def test_windows_are_those_of_the_text_and_carry_their_document(tokenizer, tmp_path):
    stories = [f"def story_{n}(): return {list(range(40 + n))}" for n in range(12)]
    file = write(tmp_path / "stories.json", stories)
    whole, half = (windowed.evaluation_windows(file, tokenizer, 16, second_half=second) for second in (False, True))
    assert torch.equal(half.ids, windows(text.disjoint_streams(file, file, tokenizer)[1], 16))
    assert torch.equal(whole.ids, windows(tokenize(stories, tokenizer), 16))
    for part in (whole, half):
        assert (part.documents.diff() >= 0).all() and part.documents[-1] == 11
    assert whole.documents[0] == 0 and len(whole.documents.unique()) == 12 and 4 < half.documents[0] < 8
    few = windowed.evaluation_windows(file, tokenizer, 16, samples=3)
    assert torch.equal(few.ids, whole.ids[:3])
    (tmp_path / "book.txt").write_text("\n".join(stories), encoding="utf-8")  # where its stories begin isn't known
    book = windowed.evaluation_windows(f"{tmp_path}/book.txt", tokenizer, 16)
    assert book.documents is None and str(book) == f"{len(book.ids)} x 16 tokens"
