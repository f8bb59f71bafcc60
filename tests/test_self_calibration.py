"""Text that a model writes itself: drawn from its own predictions, and nothing else about the model changes."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from commands import document
from models import Recipe
from transformers import GenerationConfig

import minislice
from minislice.beyond.rulers import predictions
from minislice.beyond.self_calibration import own_text
from minislice.command import inputs
from minislice.corpus.batches import token_batches

SEQUENCES, LENGTH = 40, 40


@pytest.fixture
def model():
    return Recipe("opt").model()


def text_is_drawn_from_the_models_predictions(model, **options) -> None:
    """Of tokens t ~ p the mean of -log p(t) is p's entropy, up to chance: where p is certain, and where it is not."""
    ids = own_text(model, SEQUENCES, LENGTH, seed=1, **options)
    assert ids.shape == (SEQUENCES, LENGTH) and ids.dtype == torch.int64
    log_p = torch.cat([predictions(model, batch) for batch in token_batches(model, ids, None, 8)]).double()
    entropy = -(log_p.exp() * log_p).sum(1)
    surplus = -log_p.gather(1, ids[:, 1:].reshape(-1, 1))[:, 0] - entropy
    for part in surplus[entropy.argsort()].chunk(2):
        assert abs(part.mean()) < 4 * part.std() / len(part) ** 0.5
    assert len(ids[:, 0].unique()) > 0.7 * SEQUENCES  # evenly


def test_text_is_drawn_from_the_models_predictions_and_other_text_is_found(model, monkeypatch):
    text_is_drawn_from_the_models_predictions(model)
    with pytest.raises(AssertionError):
        text_is_drawn_from_the_models_predictions(model, vocabulary=2)  # all sequences begin alike
    generate = type(model).generate
    for asked in ({"temperature": 0.8}, {"temperature": 1.25}, {"top_p": 0.9}):
        wrong = lambda self, ids, asked=asked, **given: generate(self, ids, **{**given, **asked})  # noqa: E731
        monkeypatch.setattr(type(model), "generate", wrong)
        with pytest.raises(AssertionError):
            text_is_drawn_from_the_models_predictions(model)


def test_what_the_model_is_told_to_generate_does_not_matter(model):
    """A hub's generation_config.json asks for nicer text than the model's own, and for an end."""
    plain, ends = own_text(model, 3, 40), list(range(0, model.config.vocab_size, 2))
    asked = GenerationConfig(eos_token_id=ends, repetition_penalty=1.5, temperature=0.5, max_length=7)
    model.generation_config = asked
    assert torch.equal(own_text(model, 3, 40), plain) and model.generation_config is asked


def test_the_same_seed_gives_the_same_text_and_leaves_the_callers_random_numbers(model):
    state = torch.get_rng_state()
    first = own_text(model.train(), 4, 30, seed=2)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert torch.equal(own_text(model.eval(), 4, 30, seed=2, vocabulary=10**6), first)  # more than the embedding has
    assert not torch.equal(*(own_text(model, 4, 30, vocabulary=1, seed=seed) for seed in (2, 3)))
    with torch.device("meta"):
        assert torch.equal(own_text(model, 4, 30, seed=2), first)
    alike = own_text(model, 6, 30, vocabulary=1, batch_size=2)
    assert (alike[:, 0] == 0).all() and len(alike.unique(dim=0)) == 6  # no batch repeats another


def test_a_command_calibrates_on_it(run, tmp_path):
    asked = ["slice", "mini-opt", "--calibration", "own", "--seqlen", "32", "--samples", "8", "--eval-samples", "2"]
    status, out, _ = run(*asked, "--seed", "3", "--quiet", "--json", "--out", tmp_path / "sliced")
    printed = document(out)
    assert (status, printed["calibration"]) == (0, "the model's own, 8 x 32 tokens")
    assert printed["evaluation"] == "embedded, 2 x 32 tokens"
    sliced, tokenizer = minislice.load(tmp_path / "sliced", dtype="float32", device="cpu")
    again, _ = minislice.load("mini-opt", dtype="float32", device="cpu")
    minislice.slice_model(again, own_text(again, 8, 32, vocabulary=len(tokenizer), seed=3))
    assert all(torch.equal(*pair) for pair in zip(sliced.parameters(), again.parameters(), strict=True))


def test_several_processes_calibrate_on_what_the_first_has_written(monkeypatch, model):
    """Two GPUs may round differently, and then draw different tokens."""
    written, sent = torch.full((4, 32), 7), []
    second = SimpleNamespace(index=1, firsts=lambda tensors: sent.extend(tensors) or (written,))
    monkeypatch.setattr(inputs, "own_text", lambda *args, **settings: pytest.fail("not the first process"))
    arguments = argparse.Namespace(samples=4, seed=0, quiet=True, processes=second)
    assert torch.equal(inputs._own_text(arguments, 32, model, range(100)), written)
    assert [(ids.shape, ids.dtype) for ids in sent] == [(written.shape, written.dtype)]
