"""Recovery fine-tuning: what it trains on, what it leaves alone, and that it goes on where it stopped."""

import copy
import functools
import pydoc_data.topics
import shutil
from types import SimpleNamespace

import numpy
import pytest
import torch
from commands import document
from models import VOCABULARY, Recipe
from streamed import logits
from test_export import exported
from torch import Tensor
from tqdm.auto import tqdm

import minislice
from minislice.architecture.network import network
from minislice.beyond.self_calibration import own_text
from minislice.corpus.text import disjoint_streams, halves, sample, tokenize, windows
from minislice.measuring.lock import alone
from minislice.recovery import checkpoints, sequences

pytest.importorskip("peft")
from minislice.recovery import training

QUICK = {"rank": 4, "steps": 2, "learning_rate": 1e-2, "accumulation": 1, "held_out": 0.25, "every": 2, "batch_size": 2}
TOO_FAST = {**QUICK, "learning_rate": 0.3, "every": 1}  # the first step is the best


def sliced(family: str = "llama", **options):
    recipe = Recipe(family)
    model = recipe.model().float()
    return minislice.slice_model(model, recipe.tokens(), **{"width": 12, **options}), recipe.tokens(1)


def weights(model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def trained(model, tokens, *arguments, **options) -> dict[str, Tensor]:
    other = copy.deepcopy(model)
    minislice.recover(other, tokens, *arguments, **{**QUICK, **options})
    return weights(other)


def test_a_recovered_model_is_a_better_sliced_model(tmp_path):
    """Lower perplexity on text it never saw; the same modules, sizes and state; what is saved is what was measured."""
    model, tokenizer = minislice.load("mini-llama", dtype="float32", device="cpu")
    text = "\n\n".join(pydoc_data.topics.topics.values())[:200_000]  # sooner read than all that is embedded
    first, second = halves(tokenize(text, tokenizer))
    calibration, evaluation = sample(first, 48, 96), sample(second, 12, 96)
    minislice.slice_model(model, calibration[:16], slicing=0.7, head="own")
    before, modules = weights(model), [type(module) for module in model.modules()]
    options = {"steps": 8, "learning_rate": 4e-3, "every": 4, "batch_size": 4, "accumulation": 1}
    report = minislice.recover(model, calibration, evaluation=iter([evaluation]), **options)  # which it reads again
    assert minislice.perplexity(model, evaluation) == report.after < 0.99 * report.before
    assert [type(module) for module in model.modules()] == modules and not model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    after = weights(model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    linears = {linear for block in network(model).blocks for linear in block.linears.values()}
    assert changed == {f"{key}.weight" for key, module in model.named_modules() if module in linears}
    assert len(report.losses) == 8 and len(report.held_out) == 2 and report.sequences == 46
    model.save_pretrained(tmp_path / "model", tokenizer=tokenizer)
    loaded, _ = minislice.load(tmp_path / "model")
    assert minislice.perplexity(loaded, evaluation) == report.after
    assert loaded.config.slicing["recovery"]["steps"] == report.steps


def test_lora_that_is_thrown_away_is_found(monkeypatch):
    model, tokens = sliced()
    with torch.no_grad():  # a caller may have switched gradients off for good
        assert not same(trained(model, tokens), weights(model))
    monkeypatch.setattr("peft.tuners.lora.LoraModel.merge_and_unload", lambda self: self.unload())
    assert same(trained(model, tokens), weights(model))


def test_a_model_that_was_given_tokens_after_slicing_is_recovered():
    model, tokens = sliced("phi")
    model.resize_token_embeddings(VOCABULARY + 5, mean_resizing=False)
    assert not same(trained(model, tokens), weights(model))


def test_what_could_be_exported_before_can_be_after_training_in_bfloat16(tmp_path):
    model, tokens = sliced(adapter="none", slice_head=True)
    in_float32 = trained(model, tokens)
    minislice.recover(model, tokens, bf16=True, **QUICK)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not same(weights(model), in_float32)
    exported(model, tokens, tmp_path / "stock")


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


def padding_is_never_trained(padding: str) -> None:
    """Tokens at padded places change nothing, neither as inputs nor as labels."""
    model, ids = sliced()
    mask = Recipe("llama", padding=padding).mask()
    others = torch.where(mask.bool(), ids, (ids + 7) % 100 + 1)
    first, second = (trained(model, tokens, mask, batch_size=4) for tokens in (ids, others))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_a_sequence_without_predictions_is_left_out():
    """One of padding alone, and one of a single token, wherever they stand."""
    model, tokens = sliced()
    mask = torch.ones_like(tokens)
    mask[1], mask[3, 1:] = 0, 0
    weights_without_them = trained(model, tokens[::2], batch_size=1, held_out=0.5)
    assert same(trained(model, tokens, mask, batch_size=1, held_out=0.5), weights_without_them)


WRONG_LABELS = {
    "right": lambda ids, mask: ids.clone(),  # predictions of padding
    "left": lambda ids, mask: torch.where(mask, ids, sequences.IGNORED),  # and from padding
}


@pytest.mark.parametrize("padding", WRONG_LABELS)
def test_padding_is_never_trained_and_training_on_it_is_found(padding, monkeypatch):
    padding_is_never_trained(padding)
    monkeypatch.setattr(sequences, "labels", WRONG_LABELS[padding])
    with pytest.raises(AssertionError):
        padding_is_never_trained(padding)


def test_the_held_out_sequences_are_watched_and_not_trained_on():
    model, tokens = sliced()
    others = torch.cat([tokens[:3], Recipe("llama").tokens(2)[:1]])  # another last sequence, which is held out
    report, other = (minislice.recover(copy.deepcopy(model), ids, **QUICK) for ids in (tokens, others))
    assert report.sequences == 3 and [step for step, _ in report.held_out] == [2]
    assert other.losses == report.losses and other.held_out != report.held_out


def held_out_perplexity_is_that_of_the_model() -> None:
    """Also where held-out sequences differ in length."""
    model, tokens = sliced()
    mask = torch.ones_like(tokens)
    mask[3, 3:] = 0
    report = minislice.recover(model, tokens, mask, **{**QUICK, "batch_size": 1, "held_out": 0.5})
    expected = minislice.perplexity(model, tokens[2:], mask[2:])
    assert report.held_out[-1][1] == pytest.approx(expected, rel=1e-4)


def test_held_out_perplexity_is_that_of_the_model_and_a_mean_over_batches_is_found(monkeypatch):
    held_out_perplexity_is_that_of_the_model()
    monkeypatch.delattr(training.CheckpointTrainer, "evaluation_loop")
    with pytest.raises(AssertionError):
        held_out_perplexity_is_that_of_the_model()


def test_training_stops_where_the_held_out_part_gets_worse_and_the_best_is_kept():
    model, tokens = sliced()
    report = minislice.recover(model, tokens, **{**TOO_FAST, "steps": 40, "patience": 2})
    perplexities = [perplexity for _, perplexity in report.held_out]
    assert len(perplexities) == report.steps + 2 < 40 and perplexities[report.steps - 1] == min(perplexities)
    assert minislice.perplexity(model, tokens[3:]) == pytest.approx(min(perplexities), rel=1e-4)


def test_a_seed_repeats_a_run_and_no_global_generator_is_touched():
    model, tokens = sliced()
    states = torch.get_rng_state(), numpy.random.get_state()[1].tolist()  # Python's own is used by beartype, here
    first, again, other = (trained(model, tokens, dropout=0.2, seed=seed) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    assert torch.equal(states[0], torch.get_rng_state()) and states[1] == numpy.random.get_state()[1].tolist()


def test_a_model_is_trained_on_its_own_gpu(monkeypatch):
    model, tokens = sliced()
    second, current = torch.device("cuda:1"), []

    def begin(lora, arguments, **options):
        assert arguments.device == current[-1] == second and arguments.n_gpu <= 1
        raise Killed

    monkeypatch.setattr(type(model), "device", second)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(training, "CheckpointTrainer", begin)
    with pytest.raises(Killed):
        minislice.recover(model, tokens, **QUICK)


def test_every_gpus_generator_is_as_it_was_after_recovery_and_after_writing_text(monkeypatch):
    """Seeding torch seeds all of them, also those that the model isn't on."""
    restored = {}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda gpu: f"state {gpu}")
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: restored.update({gpu: state}))
    for seeds in (lambda: trained(*sliced()), lambda: own_text(Recipe("llama").model(), 1, 2)):
        restored.clear()
        seeds()
        assert restored == {0: "state 0", 1: "state 1"}


def test_checkpointed_activations_give_the_same_gradients():
    model, tokens = sliced("opt")
    first, second = (trained(model, tokens, gradient_checkpointing=how) for how in (False, True))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def settings_of(model) -> list:
    """Modules that compute their activations twice, and how; hooks of the embedding; the config."""
    checkpointing = [value for m in model.modules() for name, value in vars(m).items() if "checkpointing" in name]
    return [*checkpointing, *model.get_input_embeddings()._forward_hooks.items(), model.config.to_dict()]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_slicing_and_recovery_leave_gradient_checkpointing_as_the_caller_has_set_it(checkpointed, monkeypatch):
    model, tokens, used = Recipe("llama").model().float(), Recipe("llama").tokens(1), []
    if checkpointed:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # its old name
    minislice.slice_model(model, Recipe("llama").tokens(), width=12)
    before, on_step_end = settings_of(model), training.Watch.on_step_end
    assert {layer.gradient_checkpointing for layer in network(model).layers} == {checkpointed}

    def watched(self, *arguments, model, **named):
        used.append({layer.gradient_checkpointing for layer in network(model.get_base_model()).layers})
        on_step_end(self, *arguments)

    monkeypatch.setattr(training.Watch, "on_step_end", watched)
    for how, expected in ((None, checkpointed), (False, False), (True, True)):
        minislice.recover(model, tokens, gradient_checkpointing=how, **QUICK)
        assert settings_of(model) == before and used == [{expected}] * 2
        used.clear()
        del model.recovery  # so that it can be recovered again


class Killed(BaseException):
    """Raised in the middle of a run."""


def kill_in_a_write(monkeypatch) -> None:
    def kill(checkpoint, best):
        if checkpoint.name == "checkpoint-4":
            raise Killed
        checkpoints.call_whole(checkpoint, best)

    monkeypatch.setattr(training, "call_whole", kill)


def kill_in_a_deletion(monkeypatch) -> None:
    def kill(checkpoint):
        (checkpoint / "trainer_state.json").unlink()
        raise Killed

    monkeypatch.setattr(checkpoints, "shutil", SimpleNamespace(rmtree=kill))


@pytest.mark.parametrize(("kill", "steps_left"), [(kill_in_a_write, 6), (kill_in_a_deletion, 4)])
def test_an_interrupted_run_goes_on_from_its_last_whole_checkpoint(kill, steps_left, tmp_path, monkeypatch):
    model, tokens = sliced()
    options = {**QUICK, "steps": 8, "dropout": 0.2, "folder": tmp_path / "run"}
    expected = trained(model, tokens, **{**options, "folder": None})
    before = weights(model)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill(patch)
        minislice.recover(model, tokens, **options)
    assert same(weights(model), before) and not hasattr(model, "recovery")  # as it was
    steps = []
    with monkeypatch.context() as patch:
        patch.setattr(training.Watch, "on_step_end", lambda *_, **__: steps.append(1))
        report = minislice.recover(model, tokens, **options)
    assert len(steps) == steps_left and len(report.losses) == 8
    assert same(weights(model), expected)


def test_a_folder_that_is_not_as_this_recovery_left_it_is_refused(tmp_path):
    model, tokens = sliced()
    folder, settings = tmp_path / "run", {**TOO_FAST, "steps": 4}
    minislice.recover(copy.deepcopy(model), tokens, folder=folder, **settings)  # leaves checkpoints 1, the best, and 4

    def assert_refused(message, model=model, tokens=tokens, **options) -> None:
        with pytest.raises(ValueError, match=message):
            minislice.recover(model, tokens, folder=folder, **{**settings, **options})

    assert_refused("an unfinished run with other settings .*sequences a step 2 there, 1 here", batch_size=1)
    assert_refused("an unfinished run with other settings .*tokens ", tokens=tokens.flip(0))
    assert_refused("an unfinished run with other settings .*model ", model=sliced(width=11)[0])
    with alone(folder / "checkpoints"):
        assert_refused("another run writes to")
    shutil.rmtree(folder / "checkpoint-1")
    assert_refused("needs .*checkpoint-1 too, the best one, which isn't whole; put it back, or delete")
    (folder / "settings.json").unlink()
    assert_refused(r"has files in it \(checkpoint-4\) and no settings.json")
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "settings.json").write_text('{"editor.fontSize": 14}')
    assert_refused("with other settings")


def test_a_run_that_diverged_closes_its_bar_and_is_begun_again_with_another_rate(tmp_path, monkeypatch):
    (model, tokens), bars = sliced(), []
    monkeypatch.setattr(training, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    options = {**QUICK, "folder": tmp_path, "progress": True}
    with pytest.raises(ValueError, match="give a lower learning_rate"):  # before its first checkpoint
        minislice.recover(model, tokens, **{**options, "learning_rate": 1e30, "steps": 9, "every": 9})
    assert len(bars) == 1 and bars[0] not in tqdm._instances
    minislice.recover(model, tokens, **options)


def out_of_memory_above(monkeypatch, sequences: int) -> None:
    forward = minislice.SlicedForCausalLM.forward

    @functools.wraps(forward)  # the Trainer reads its signature
    def limited(self, input_ids=None, **kwargs):
        if self.training and len(input_ids) > sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(minislice.SlicedForCausalLM, "forward", limited)


def test_where_memory_is_not_enough_fewer_sequences_a_pass_make_the_same_steps(monkeypatch):
    """A step has 5 sequences, and 2 fit in memory; 2 don't divide 5, so that each pass takes 1."""
    model, tokens = sliced()
    tokens = torch.cat([tokens, Recipe("llama").tokens(2)])
    expected = trained(model, tokens, batch_size=5)
    out_of_memory_above(monkeypatch, 2)
    torch.testing.assert_close(expected, trained(model, tokens, batch_size=5), rtol=1e-3, atol=1e-4)


def test_a_model_is_recovered_only_once(tmp_path):
    model, tokens = sliced()
    minislice.recover(model, tokens, **QUICK)
    model.save_pretrained(tmp_path / "model")
    for again in (model, minislice.load(tmp_path / "model")[0]):
        with pytest.raises(ValueError, match="recovered before"):
            minislice.recover(again, tokens, **QUICK)


KNOWN = torch.stack([Recipe("llama").tokens(2)[0], Recipe("llama").tokens(1)[3]])  # the second is trained on
REFUSED = {  # what the error says, and the options
    "4 sequences, 4 of them held out, leave none to train on": {"held_out": 0.9},
    "1 of the 2 evaluation sequences are among the 4 to train on": {"evaluation": KNOWN},
    r"training diverged; give a lower .* than 1e\+30": {"learning_rate": 1e30, "steps": 9, "train_adapters": True},
    "nothing to predict: every sequence has a single token": {"attention_mask": torch.eye(4, 30)},
    "not enough memory for one sequence at a time: CUDA out of memory": {},
    r'pip install -e "\.\[recover\]"': {},
}


def test_what_is_refused_leaves_the_model_as_it_was(monkeypatch):
    model, tokens = sliced()
    before = weights(model)
    for message, options in REFUSED.items():
        if "memory" in message:
            out_of_memory_above(monkeypatch, 0)
        if "pip" in message:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ValueError, match=message):
            minislice.recover(model, tokens, **{**QUICK, **options})
        assert same(weights(model), before) and not hasattr(model, "recovery")


def test_the_command_goes_on_after_an_interruption_saves_and_reports(tmp_path, monkeypatch, run):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(pydoc_data.topics.topics.values())[:40_000], encoding="utf-8")
    model, tokenizer = minislice.load("mini-llama", dtype="float32", device="cpu")
    calibration, evaluation = disjoint_streams(str(text), str(text), tokenizer)
    minislice.slice_model(model, sample(calibration, 8, 48), slicing=0.5)
    model.save_pretrained(tmp_path / "sliced", tokenizer=tokenizer)
    command = ["recover", tmp_path / "sliced", "--calibration", text, "--samples", "20", "--seqlen", "48"]
    command += ["--eval-samples", "8", "--steps", "4", "--every", "2", "--learning-rate", "2e-3", "--quiet"]
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_a_write(patch)
        run(*command, "--out", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"text.txt", "sliced", ".out.recovery"}
    (tmp_path / ".out.recovery" / "notes.txt").write_text("mine")
    status, out, err = run(*command, "--out", tmp_path / "out", "--json")
    result = document(out)
    assert (status, err) == (0, "") and (tmp_path / "out").is_dir()
    assert [path.name for path in (tmp_path / ".out.recovery").iterdir()] == ["notes.txt"]
    loaded, _ = minislice.load(tmp_path / "out", device="cpu")
    measured = minislice.perplexity(loaded, windows(evaluation, 48, 8))
    assert result["perplexity after"] == pytest.approx(measured, rel=1e-6)
    assert result["perplexity after"] < result["perplexity before"]
    assert result["parameters"] == minislice.parameters(loaded)
    assert "before recovery on text.txt, first half, 20 x 48 tokens" in loaded.config.slicing["perplexity"]
