"""Recovery fine-tuning: what it trains on, what it leaves alone, and that it goes on where it stopped.

Every property is also run against planted mistakes, and must fail there.
"""

import copy
import functools
import gc
import json
import resource
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from models import Recipe
from streamed import logits
from torch import Tensor
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture.network import network
from minislice.command.cli import main
from minislice.corpus.embedded import EMBEDDED
from minislice.corpus.text import load_text, sample, tokenize, windows
from minislice.measuring.lock import alone
from minislice.recovery import checkpoints, recover, sequences

pytest.importorskip("peft")
from minislice.recovery import training

QUICK = {"rank": 4, "steps": 3, "learning_rate": 1e-2, "accumulation": 1, "held_out": 0.25, "every": 1, "batch_size": 2}
TOO_FAST = {**QUICK, "learning_rate": 0.3, "steps": 4}  # the first step is the best


@pytest.fixture(autouse=True, scope="module")
def few_objects():
    """The Trainer has Python's garbage collected, which takes the longer the more objects other tests have left."""
    gc.freeze()
    yield
    gc.unfreeze()


def sliced(family: str = "llama", **options):
    """A random small sliced model in float32, and tokens for it."""
    recipe = Recipe(family)
    model = recipe.model().float()
    return minislice.slice_model(model, recipe.tokens(), **{"width": 12, **options}), recipe.tokens(1)


def weights(model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def trained(model, tokens, *arguments, **options) -> dict[str, Tensor]:
    """The weights of a copy after recovery."""
    other = copy.deepcopy(model)
    minislice.recover(other, tokens, *arguments, **{**QUICK, **options})
    return weights(other)


# ---- it recovers, and the result is a sliced model like any other ----


def recovered_model_is_a_better_sliced_model(name, folder) -> None:
    """Lower perplexity on text it never saw; the same modules, sizes and state; what is saved is what was measured."""
    model, tokenizer = minislice.load(name, dtype="float32", device="cpu")
    calibration = sample(tokenize(load_text("embedded"), tokenizer), 96, 96)
    evaluation = sample(tokenize(load_text("embedded", "test"), tokenizer), 24, 96)
    minislice.slice_model(model, calibration[:32], slicing=0.7, head="own")
    before, modules = weights(model), [type(module) for module in model.modules()]
    adapters = {key for key in before if ".adapter." in key}
    options = {"steps": 12, "learning_rate": 4e-3, "every": 6, "batch_size": 4, "accumulation": 1}
    report = minislice.recover(model, calibration, evaluation=evaluation, **options)
    assert report.after < 0.99 * report.before
    assert report.after == minislice.perplexity(model, evaluation)
    assert [type(module) for module in model.modules()] == modules and not model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    after = weights(model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    linears = {linear for block in network(model).blocks for linear in block.linears.values()}
    assert changed == {f"{key}.weight" for key, module in model.named_modules() if module in linears}
    assert adapters and not changed & adapters
    assert len(report.losses) == 12 and len(report.held_out) == 2 and report.sequences == 91
    model.save_pretrained(folder, tokenizer=tokenizer)
    loaded, _ = minislice.load(folder)
    assert minislice.perplexity(loaded, evaluation) == report.after
    assert loaded.config.slicing["recovery"]["steps"] == report.steps


@pytest.mark.parametrize(
    "name", [name if "llama" in name else pytest.param(name, marks=pytest.mark.slow) for name in EMBEDDED]
)
def test_recovery_lowers_the_perplexity_of_unseen_text(name, tmp_path):
    recovered_model_is_a_better_sliced_model(name, tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["thrown away", "left beside the weights"])
def test_lora_that_is_not_merged_is_found(mistake, tmp_path, monkeypatch):
    wrong = {"thrown away": lambda self: self.unload(), "left beside the weights": lambda self: self}[mistake]
    monkeypatch.setattr("peft.tuners.lora.LoraModel.merge_and_unload", wrong)
    with pytest.raises((AssertionError, KeyError)):
        recovered_model_is_a_better_sliced_model("mini-llama", tmp_path / "model")


def test_what_could_be_exported_before_can_be_after_training_in_bfloat16(tmp_path):
    model, tokens = sliced(adapter="none", slice_head=True)
    before = weights(model)
    minislice.recover(model, tokens, bf16=True, **QUICK)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not same(before, weights(model))
    minislice.export(model, tmp_path / "stock")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "stock"), tokens)
    torch.testing.assert_close(found, logits(model, tokens), rtol=1e-4, atol=1e-4)


def test_a_loaded_model_is_trained_as_the_one_in_memory(tmp_path):
    model, tokens = sliced("phi")
    model.save_pretrained(tmp_path / "model")
    loaded, _ = minislice.load(tmp_path / "model")
    expected = trained(model, tokens)
    minislice.recover(loaded, tokens, **QUICK)
    assert same({key.removeprefix("base."): tensor for key, tensor in weights(loaded).items()}, expected)


def test_adapters_are_trained_where_that_is_asked_for(tmp_path):
    model, tokens = sliced("opt", adapter="low-rank")
    before = weights(model)
    minislice.recover(model, tokens, train_adapters=True, **QUICK)
    after = weights(model)
    adapters = [key for key in before if ".adapter." in key]
    assert adapters and after.keys() == before.keys()
    assert all(not torch.equal(before[key], after[key]) for key in adapters)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(minislice.load(tmp_path / "model")[0], tokens), logits(model, tokens))


# ---- what it trains on ----


def padding_is_never_trained(family: str, padding: str) -> None:
    """What stands at padded places, and predictions from and of it, change nothing."""
    recipe = Recipe(family, padding=padding)
    model, _ = sliced(family)
    ids, mask = recipe.tokens(1), recipe.mask()
    others = torch.where(mask.bool(), ids, (ids + 7) % 100 + 1)
    assert not torch.equal(ids, others)
    first, second = (trained(model, tokens, mask, batch_size=4, accumulation=1) for tokens in (ids, others))
    assert all(torch.allclose(first[name], second[name], rtol=1e-5, atol=1e-6) for name in first)


@pytest.mark.parametrize(("family", "padding"), [("opt", "left"), ("llama", "right"), ("phi", "left")])
def test_padding_is_never_trained(family, padding):
    padding_is_never_trained(family, padding)


WRONG_LABELS = [
    (lambda ids, mask: ids.clone(), "right"),  # predictions of padding
    (lambda ids, mask: torch.where(mask, ids, sequences.IGNORED), "left"),  # and from padding
]


@pytest.mark.parametrize(("mistake", "padding"), WRONG_LABELS)
def test_training_on_padding_is_found(mistake, padding, monkeypatch):
    monkeypatch.setattr(sequences, "labels", mistake)
    with pytest.raises(AssertionError):
        padding_is_never_trained("llama", padding)


def test_the_labels_are_the_predictions_that_perplexity_counts():
    recipe = Recipe("llama", padding="left")
    model, _ = sliced()
    ids, mask = recipe.tokens(), recipe.mask()
    rows = [{"input_ids": i, "attention_mask": m, "labels": sequences.labels(i, m.bool())} for i, m in zip(ids, mask)]  # noqa: B905
    with torch.no_grad():
        loss = model(**sequences.collate(rows)).loss
    assert loss.exp().item() == pytest.approx(minislice.perplexity(model, ids, mask), rel=1e-5)


def evaluation_text_changes_nothing() -> None:
    model, tokens = sliced()
    assert same(trained(model, tokens), trained(model, tokens, evaluation=Recipe("llama").tokens(2)))


def test_the_evaluation_text_changes_nothing():
    evaluation_text_changes_nothing()


def test_training_on_the_evaluation_text_is_found(monkeypatch):
    leaked, right = [], training.train
    monkeypatch.setattr(recover, "require_disjoint", lambda known, evaluation: leaked.extend(evaluation))
    monkeypatch.setattr(training, "train", lambda model, rows, *rest: right(model, [*rows, *leaked], *rest))
    with pytest.raises(AssertionError):
        evaluation_text_changes_nothing()


def test_the_held_out_sequences_are_watched_and_not_trained_on():
    model, tokens = sliced()
    others = torch.cat([tokens[:3], Recipe("llama").tokens(2)[:1]])  # another last sequence, which is held out
    first = copy.deepcopy(model)
    report = minislice.recover(first, tokens, **QUICK)
    assert report.sequences == 3 and [step for step, _ in report.held_out] == [1, 2, 3]
    second = copy.deepcopy(model)
    other = minislice.recover(second, others, **QUICK)
    assert other.losses == report.losses and other.held_out != report.held_out
    assert report.held_out[report.steps - 1][1] == pytest.approx(minislice.perplexity(first, tokens[3:]), rel=1e-4)


def test_training_stops_where_the_held_out_part_gets_worse_and_the_best_is_kept():
    model, tokens = sliced()
    report = minislice.recover(model, tokens, **{**QUICK, "steps": 40, "learning_rate": 0.3, "patience": 2})
    losses = [perplexity for _, perplexity in report.held_out]
    assert len(losses) < 40 and losses[report.steps - 1] == min(losses)
    assert len(losses) == report.steps + 2
    assert minislice.perplexity(model, tokens[3:]) == pytest.approx(min(losses), rel=1e-4)


# ---- the same again ----


def test_a_seed_repeats_a_run_and_no_global_generator_is_touched():
    model, tokens = sliced()
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist()  # Python's own is used by beartype, here
    first, again, other = (trained(model, tokens, dropout=0.2, seed=seed) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    now = torch.get_rng_state(), numpy.random.get_state()[1].tolist()
    assert torch.equal(states[0], now[0]) and states[1] == now[1]


def test_checkpointed_activations_give_the_same_gradients():
    model, tokens = sliced("opt")
    first, second = (trained(model, tokens, gradient_checkpointing=how) for how in (False, True))
    assert all(torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-5) for name in first)


class Killed(Exception):
    """Raised in the middle of a run."""


def kill_at(monkeypatch, step: int) -> None:
    def kill(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(training.Watch, "on_step_begin", kill)


@pytest.mark.parametrize("torn", [False, True])
def test_an_interrupted_run_goes_on_from_its_last_checkpoint(torn, tmp_path, monkeypatch):
    model, tokens = sliced()
    options = {**QUICK, "steps": 8, "every": 2, "dropout": 0.2, "folder": tmp_path / "run"}
    expected = trained(model, tokens, **{**options, "folder": None})
    before = weights(model)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, 5)
        minislice.recover(model, tokens, **options)
    assert same(weights(model), before) and not hasattr(model, "recovery")  # as it was
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    if torn:  # killed while the Trainer wrote it
        (tmp_path / "run" / "checkpoint-4" / checkpoints.SEALS).unlink()
        (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").write_text('{"global_st')
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(training.Watch, "on_step_end", lambda *_, **__: steps.append(1))
        report = minislice.recover(model, tokens, **options)
    assert len(steps) == (6 if torn else 4) and len(report.losses) == 8
    assert same(weights(model), expected)


def test_a_run_with_other_settings_is_not_gone_on_with(tmp_path):
    model, tokens = sliced()
    minislice.recover(copy.deepcopy(model), tokens, folder=tmp_path / "run", **QUICK)
    permuted = copy.deepcopy(model)
    with torch.no_grad():
        permuted.get_input_embeddings().weight.copy_(
            model.get_input_embeddings().weight.flip(0)
        )  # every sum is the same
    for changed, ids, options, named in (
        (model, tokens, {"rank": 5}, "rank 4 there, 5 here"),
        (model, tokens, {"batch_size": 1}, "sequences a step 2 there, 1 here"),
        (model, tokens.flip(0), {}, "tokens "),
        (permuted, tokens, {}, "model "),
    ):
        with pytest.raises(ValueError, match=rf"an unfinished run with other settings .{named}"):
            minislice.recover(changed, ids, folder=tmp_path / "run", **{**QUICK, **options})


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A sliced model, tokens, and the folder that training left: checkpoints 1 (the best one) and 4."""
    model, tokens = sliced()
    folder = tmp_path_factory.mktemp("unfinished") / "run"
    minislice.recover(copy.deepcopy(model), tokens, folder=folder, **TOO_FAST)
    return model, tokens, folder


def shortened(path):
    path.write_bytes(path.read_bytes()[:-9])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("checkpoint-4/adapter_model.safetensors", flipped, "has changed since .*delete .*run to start"),
        ("checkpoint-4/optimizer.pt", shortened, r"optimizer.pt has changed .* delete"),
        ("checkpoint-4/scheduler.pt", Path.unlink, r"scheduler.pt is missing.* delete"),
        ("checkpoint-1", shutil.rmtree, "goes on from .*checkpoint-1 too, which isn't there; delete"),
        (
            "settings.json",
            lambda path: path.write_text('{"mine": 1}'),
            "other settings .*delete it",
        ),
        ("settings.json", shortened, "is damaged"),
        ("settings.json", lambda path: path.write_text("[1]"), "is damaged: it holds a list"),
        ("settings.json", Path.unlink, r"\(checkpoint-1, checkpoint-4\) and no settings.json .*delete it to start"),
    ],
)
def test_a_folder_that_is_not_as_the_recovery_left_it_is_refused(name, change, message, unfinished, tmp_path):
    model, tokens, folder = unfinished
    shutil.copytree(folder, tmp_path / "run")
    for path in (tmp_path / "run").glob("*/trainer_state.json"):  # which names the folder
        path.write_text(path.read_text().replace(str(folder), str(tmp_path / "run")))
        (path.parent / checkpoints.SEALS).unlink()
        checkpoints.seal_checkpoint(path.parent)
    change(tmp_path / "run" / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        minislice.recover(copy.deepcopy(model), tokens, folder=tmp_path / "run", **TOO_FAST)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_second_run_is_refused_while_the_first_is_at_work(unfinished):
    model, tokens, folder = unfinished
    with alone(folder / "checkpoints"), pytest.raises(ValueError, match="another run writes to"):
        minislice.recover(copy.deepcopy(model), tokens, folder=folder, **TOO_FAST)
    minislice.recover(copy.deepcopy(model), tokens, folder=folder, **TOO_FAST)


@pytest.mark.parametrize("name", ["settings.json", "optimizer.pt"])
def test_a_checkpoint_that_cannot_be_written_is_one_error_and_the_model_is_as_it_was(name, unfinished, tmp_path):
    model, tokens, folder = unfinished
    before, unlimited = weights(model), resource.getrlimit(resource.RLIMIT_FSIZE)
    size = next(folder.rglob(name)).stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, unlimited[1]))  # as where a disk is full
    try:
        with pytest.raises(OSError, match=f"can't write .*{tmp_path / 'run'}"):
            minislice.recover(model, tokens, folder=tmp_path / "run", **TOO_FAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert same(weights(model), before)
    minislice.recover(copy.deepcopy(model), tokens, folder=tmp_path / "run", **TOO_FAST)


# ---- memory ----


def out_of_memory_above(monkeypatch, sequences: int) -> None:
    forward = minislice.SlicedForCausalLM.forward

    @functools.wraps(forward)  # the Trainer reads its signature
    def limited(self, input_ids=None, **kwargs):
        if self.training and len(input_ids) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(minislice.SlicedForCausalLM, "forward", limited)


def test_where_memory_is_not_enough_fewer_sequences_a_pass_make_the_same_steps(monkeypatch):
    model, tokens = sliced()
    tokens = torch.cat([tokens, Recipe("llama").tokens(2)])
    options = {"batch_size": 4, "accumulation": 1}
    expected = trained(model, tokens, **options)
    out_of_memory_above(monkeypatch, 1)
    found = trained(model, tokens, **options)
    assert all(torch.allclose(expected[name], found[name], rtol=1e-3, atol=1e-4) for name in expected)


# ---- bad input ----


def test_only_a_sliced_model_is_recovered_and_only_once(tmp_path):
    model, tokens = sliced()
    with pytest.raises(ValueError, match="isn't sliced"):
        minislice.recover(Recipe("llama").model().float(), tokens, **QUICK)
    minislice.recover(model, tokens, **QUICK)
    model.save_pretrained(tmp_path / "model")
    for again in (model, minislice.load(tmp_path / "model")[0]):
        with pytest.raises(ValueError, match="recovered before"):
            minislice.recover(again, tokens, **QUICK)


@pytest.mark.parametrize(
    ("options", "message", "prepare"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0", None),
        ({"learning_rate": 0.0}, "learning_rate must be a number, 0 < learning_rate", None),
        ({"held_out": 1.0}, "held_out must be a number, 0 <= held_out < 1, got 1", None),
        ({"held_out": 0.9}, "4 sequences, 4 of them held out, leave none to train on", None),
        ({"evaluation": 3}, "1 of the 2 evaluation sequences are among the 4 to train on", None),
        ({"learning_rate": 1e30, "steps": 9}, r"training diverged; give a lower learning_rate than 1e\+30", None),
        (
            {},
            r'pip install -e "\.\[recover\]"',
            lambda patch: patch.setattr("importlib.util.find_spec", lambda name: None),
        ),
        (
            {},
            "not enough memory for one sequence at a time: CUDA out of memory",
            lambda patch: out_of_memory_above(patch, 0),
        ),
    ],
)
def test_what_is_refused_leaves_the_model_as_it_was(options, message, prepare, monkeypatch):
    model, tokens = sliced()
    before = weights(model)
    if "evaluation" in options:  # one of the training sequences
        options = {"evaluation": torch.stack([Recipe("llama").tokens(2)[0], tokens[options["evaluation"]]])}
    if prepare:
        prepare(monkeypatch)
    with pytest.raises(ValueError, match=message):
        minislice.recover(model, tokens, **{**QUICK, **options})
    assert same(weights(model), before) and not hasattr(model, "recovery")


# ---- the command ----


TEXTS = ["--calibration", "embedded", "--evaluation", "embedded", "--samples", "40", "--seqlen", "48"]
FEW = ["--eval-samples", "8", "--steps", "4", "--every", "2", "--learning-rate", "2e-3", "--quiet"]


def test_the_command_goes_on_after_an_interruption_saves_and_reports(tmp_path, monkeypatch, capsys):
    model, tokenizer = minislice.load("mini-llama", dtype="float32", device="cpu")
    minislice.slice_model(model, sample(tokenize(load_text("embedded"), tokenizer), 8, 48), slicing=0.5)
    model.save_pretrained(tmp_path / "sliced", tokenizer=tokenizer)
    command = ["recover", str(tmp_path / "sliced"), *TEXTS, *FEW, "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            main(command)
    assert {path.name for path in tmp_path.iterdir()} == {"sliced", ".out.recovery"}
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert err == "" and {path.name for path in tmp_path.iterdir()} == {"sliced", "out"}
    loaded, tokenizer = minislice.load(tmp_path / "out", device="cpu")
    evaluation = windows(tokenize(load_text("embedded", "test"), tokenizer), 48, 8)
    assert result["perplexity after"] == pytest.approx(minislice.perplexity(loaded, evaluation), rel=1e-6)
    assert result["perplexity after"] < result["perplexity before"]
    assert result["parameters"] == minislice.parameters(loaded)
    assert "before recovery on embedded, 40 x 48 tokens" in loaded.config.slicing["perplexity"]
