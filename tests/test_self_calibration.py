"""Text that a model writes itself: drawn from its own predictions, and nothing else about the model changes."""

import argparse
import json
from pathlib import Path

import pytest
import torch
from models import Recipe
from transformers import GenerationConfig

import minislice
from minislice.beyond.self_calibration import own_text
from minislice.command import inputs
from minislice.command.cli import main
from minislice.corpus.batches import token_batches
from minislice.likelihood import predictions

SEQUENCES, LENGTH = 24, 96


@pytest.fixture(scope="module")
def model():
    return minislice.load("mini-opt", dtype="float32", device="cpu")[0]


def text_is_drawn_from_the_models_predictions(model, write=own_text) -> None:
    """Of tokens t ~ p the mean of -log p(t) is p's entropy, up to chance: where p is certain, and where it is not."""
    ids = write(model, SEQUENCES, LENGTH, seed=1)
    assert ids.shape == (SEQUENCES, LENGTH) and ids.dtype == torch.int64
    log_p = torch.cat([predictions(model, batch) for batch in token_batches(model, ids, None, 8)]).double()
    entropy = -(log_p.exp() * log_p).sum(1)
    surplus = -log_p.gather(1, ids[:, 1:].reshape(-1, 1))[:, 0] - entropy
    order = entropy.argsort()
    for part in (surplus[order[: len(order) // 2]], surplus[order[len(order) // 2 :]]):
        assert abs(part.mean()) < 4 * part.std() / len(part) ** 0.5
    assert len(ids[:, 0].unique()) > 0.9 * SEQUENCES  # evenly


def test_text_is_drawn_from_the_models_predictions(model):
    text_is_drawn_from_the_models_predictions(model)


@pytest.mark.parametrize(
    "asked",
    [{"temperature": 0.8}, {"temperature": 1.25}, {"top_k": 50}, {"top_p": 0.9}, {"do_sample": False}, {"min_p": 0.02}],
    ids=str,
)
def test_it_is_found_when_something_else_is_drawn(asked, model, monkeypatch):
    generate = type(model).generate
    monkeypatch.setattr(type(model), "generate", lambda self, ids, **given: generate(self, ids, **{**given, **asked}))
    with pytest.raises(AssertionError):
        text_is_drawn_from_the_models_predictions(model)


def test_it_is_found_when_all_sequences_begin_alike(model):
    def write(model, sequences, length, seed):
        return own_text(model, sequences, length, vocabulary=2, seed=seed)

    with pytest.raises(AssertionError):
        text_is_drawn_from_the_models_predictions(model, write)


def test_what_the_model_is_told_to_generate_does_not_matter(model, monkeypatch):
    """A hub's generation_config.json asks for nicer text than the model's own, and for an end."""
    plain = own_text(model, 3, 40)
    asked = GenerationConfig(
        eos_token_id=list(range(0, model.config.vocab_size, 2)), repetition_penalty=1.5, temperature=0.5, max_length=7
    )
    monkeypatch.setattr(model, "generation_config", asked)
    assert torch.equal(own_text(model, 3, 40), plain)
    assert model.generation_config is asked


def test_the_same_seed_gives_the_same_text_and_leaves_the_callers_random_numbers(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model.train()
    first = own_text(model, 4, 30, seed=2)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    model.eval()
    assert torch.equal(own_text(model, 4, 30, seed=2), first)
    assert not torch.equal(own_text(model, 4, 30, seed=3), first)
    assert (own_text(model, 40, 2, vocabulary=3)[:, 0] < 3).all()
    assert torch.equal(own_text(model, 4, 30, seed=2, vocabulary=10**6), first)  # more than the embedding has
    parts = own_text(model, 6, 30, vocabulary=1, batch_size=2)  # all begin alike
    assert len(parts.unique(dim=0)) == 6  # no batch repeats another


@pytest.mark.parametrize(
    ("sequences", "length", "settings", "said"),
    [
        (0, 8, {}, ["sequences", "got 0"]),
        (1, 1, {}, ["length", "at least 2"]),
        (1, 8, {"vocabulary": 0}, ["vocabulary", "got 0"]),
        (1, 10**4, {}, ["10000 tokens", "positions"]),
    ],
)
def test_what_can_not_be_written_is_said(sequences, length, settings, said, model):
    with pytest.raises(ValueError) as error:
        own_text(model, sequences, length, **settings)
    assert all(word in str(error.value) for word in said)


def test_a_model_that_can_not_write_is_told():
    model = Recipe("llama").model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    before = model.generation_config
    with pytest.raises(ValueError, match="NaN"):
        own_text(model, 1, 8)
    assert model.generation_config is before
    with pytest.raises(ValueError, match="not in memory"):
        own_text(Recipe("llama").model().to("meta"), 1, 8)
    recipe = Recipe("llama")
    sliced = minislice.slice_model(recipe.model(), recipe.tokens(), slicing=0.25)
    with pytest.raises(ValueError, match="sliced"):
        own_text(sliced, 1, 8)


# ---- on the command line ----

OWN = ["--calibration", "own", "--seqlen", "32", "--quiet"]


def told(capsys, *arguments: str) -> str:
    assert main([*arguments]) == 2
    return capsys.readouterr().err


def test_a_command_calibrates_on_it(capsys, tmp_path, model):
    asked = ["slice", "mini-opt", *OWN, "--samples", "8", "--eval-samples", "2", "--seed", "3", "--json"]
    assert main([*asked, "--out", str(tmp_path / "sliced")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["calibration"] == "the model's own, 8 x 32 tokens"
    assert printed["evaluation"] == "embedded, 2 x 32 tokens"
    sliced, tokenizer = minislice.load(tmp_path / "sliced", dtype="float32", device="cpu")
    again = minislice.load("mini-opt", dtype="float32", device="cpu")[0]
    tokens = own_text(again, 8, 32, vocabulary=len(tokenizer), seed=3)
    minislice.slice_model(again, tokens)
    for one, other in zip(sliced.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_several_processes_calibrate_on_what_the_first_has_written(monkeypatch, model):
    """Two GPUs may round differently, and then draw different tokens."""
    written = torch.full((4, 32), 7)

    class Second:
        index = 1

        def firsts(self, tensors):
            assert [(x.shape, x.dtype) for x in tensors] == [(written.shape, written.dtype)]
            return (written,)

    monkeypatch.setattr(inputs, "own_text", lambda *args, **settings: pytest.fail("not the first process"))
    arguments = argparse.Namespace(samples=4, seed=0, quiet=True, processes=Second())
    assert torch.equal(inputs._own_text(arguments, 32, model, range(100)), written)


def test_where_it_has_no_place_it_is_refused(capsys, tmp_path):
    assert "measure on another's text" in told(capsys, "eval", "mini-opt", "--evaluation", "own")
    assert "measure on another's text" in told(capsys, "slice", "mini-opt", *OWN, "--evaluation", "own")
    folder = tmp_path / "dense"
    model, tokenizer = minislice.load("mini-opt")
    model.save_pretrained(folder), tokenizer.save_pretrained(folder)
    streamed = ["slice", str(folder), *OWN, "--stream", "--out", str(tmp_path / "out")]
    assert "not in memory" in told(capsys, *streamed)
    minislice.slice_model(model, own_text(model, 8, 32), slicing=0.25)
    minislice.save(model, tmp_path / "sliced", tokenizer=tokenizer)
    recovering = ["recover", str(tmp_path / "sliced"), "--calibration", "own", "--out", str(tmp_path / "recovered")]
    assert "sliced or fused" in told(capsys, *recovering, "--evaluation", "embedded")
    assert not Path(tmp_path, "recovered").exists() and not Path(tmp_path, "out").exists()
