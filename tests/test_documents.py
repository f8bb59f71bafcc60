"""Windows carry the number of the document in which they begin."""

import json

import pytest
import torch

import minislice
from minislice.corpus.documents import TITLE, document_starts, evaluation_windows
from minislice.corpus.text import disjoint_streams, tokenize, windows


@pytest.fixture(scope="module")
def tokenizer():
    return minislice.load("mini-opt")[1]


ARTICLES = [
    f" = Title {n} = \n a = b , = = c\n\n = = Section = = \n def f{n} ( x ) : return {'x + ' * 9 * n} 1\n"
    for n in range(4)
]


def test_titles_begin_articles_and_sections_dont():
    assert [match.group() for match in TITLE.finditer("\n".join(ARTICLES))] == [f" = Title {n} = " for n in range(4)]


@pytest.mark.parametrize("documents", [["\n".join(ARTICLES)], [f"text {n} " * (n + 3) for n in range(5)]])
def test_a_document_starts_where_its_own_tokens_start(documents, tokenizer):
    stream = tokenize(documents, tokenizer)
    starts = document_starts(documents, tokenizer, len(stream))
    firsts = [" = Title", *["Title"] * 3] if "Title" in documents[0] else ["text"] * 5
    assert len(starts) == len(firsts)
    for start, first in zip(starts, firsts, strict=True):
        assert first.strip() in tokenizer.decode(stream[max(start - 4, 0) : start + 12])


def test_windows_are_those_of_the_text_and_carry_their_document(tokenizer, tmp_path):
    stories = [f"def story_{n}(): return {list(range(40 + n))}" for n in range(12)]
    (file := tmp_path / "stories.json").write_text(json.dumps(stories))
    whole, half = (evaluation_windows(str(file), tokenizer, 16, second_half=second) for second in (False, True))
    assert torch.equal(half.ids, windows(disjoint_streams(str(file), str(file), tokenizer)[1], 16))
    assert torch.equal(whole.ids, windows(tokenize(stories, tokenizer), 16))
    for text in (whole, half):
        assert (text.documents.diff() >= 0).all() and text.documents[-1] == 11
    assert whole.documents[0] == 0 and len(whole.documents.unique()) == 12 and 4 < half.documents[0] < 8
    few = evaluation_windows(str(file), tokenizer, 16, samples=3)
    assert torch.equal(few.ids, whole.ids[:3]) and "a quick look: the first 3 of" in str(few)
    assert "quick" not in str(whole) and str(whole).endswith("tokens of 12 documents")
