"""A sliced model on disk is the sliced model: every bit of its logits, and everything a Hugging Face model can do."""

import copy
import json
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import transformers
from models import PAPERS, VOCABULARY, Recipe
from streamed import edit, edit_config, logits, snapshot
from torch import nn
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture import families, modeling
from minislice.architecture.building import form_of
from minislice.architecture.card import made_by
from minislice.architecture.modeling import CACHE, SlicedForCausalLM
from minislice.architecture.network import network

OPTIONS = {"do_sample": False, "max_new_tokens": 6}


def sliced(recipe="llama", *, dtype=torch.float32, **options):
    """A random model, sliced in place, and tokens. Only parameters change dtype, as in `from_pretrained`."""
    recipe = Recipe(recipe) if isinstance(recipe, str) else recipe
    model, tokens = recipe.model(), recipe.tokens().clamp(max=100)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return minislice.slice_model(model, tokens, **{"width": 8, **options}), tokens


def reloaded(model, folder: Path, **settings) -> SlicedForCausalLM:
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def saved_equals_loaded(model, tokens, folder: Path) -> SlicedForCausalLM:
    before = logits(model, tokens)
    loaded = reloaded(model, folder)
    assert torch.equal(logits(model, tokens), before), "saving changed the model"
    assert type(loaded) is SlicedForCausalLM and loaded.dtype == model.dtype and not loaded.training
    assert torch.equal(logits(loaded, tokens), before), "logits differ"
    assert [form_of(block) for block in network(loaded).blocks] == [form_of(block) for block in network(model).blocks]
    parameters = minislice.parameters(model)
    assert loaded.num_parameters() == minislice.parameters(loaded) == parameters, "parameters differ"
    path = folder / "model.safetensors"  # which has the parameters and nothing else
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + model.dtype.itemsize * parameters
    return loaded


@pytest.mark.parametrize(
    ("family", "dtype", "options"),
    [
        ("opt", torch.float32, {"adapter": "full"}),
        ("llama", torch.bfloat16, {"adapter": "low-rank"}),
        ("llama", torch.float32, {"adapter": "none", "head": "fitted"}),
        ("phi", torch.float16, {"adapter": "none", "slice_head": True}),
    ],
    ids=str,
)
def test_a_loaded_model_is_the_saved_one(family, dtype, options, tmp_path):
    saved_equals_loaded(*sliced(family, dtype=dtype, **options), tmp_path / "model")


EPS_OF_A_MODULE = Recipe("opt", eps=0.5)  # OPT's config has no eps


@pytest.mark.parametrize("recipe", [EPS_OF_A_MODULE, Recipe("phi")], ids=["fused opt", "rotated phi"])
def test_a_fused_or_rotated_model_survives_saving(recipe, tmp_path):
    prepare = minislice.fuse if recipe.family == "opt" else partial(minislice.rotate, per_block=True)
    saved_equals_loaded(prepare(recipe.model()), recipe.tokens(), tmp_path / "model")


def test_saved_equals_loaded_fails_where_an_eps_is_forgotten(tmp_path, monkeypatch):
    model, tokens = minislice.fuse(EPS_OF_A_MODULE.model(), keep_tie=True), EPS_OF_A_MODULE.tokens()
    description = modeling.description
    monkeypatch.setattr(modeling, "description", lambda model: description(model) | {"norm_eps": [1e-5] * 5})
    with pytest.raises(AssertionError, match="logits differ"):
        saved_equals_loaded(model, tokens, tmp_path / "wrong")


FORMAT_1 = Path(__file__).with_name("format1")  # saved by minislice 0.1.0
EXPECTED = json.loads((FORMAT_1 / "expected.json").read_text())  # three logits, recorded when the folders were saved


@pytest.mark.parametrize("family", EXPECTED)
def test_a_folder_of_format_1_computes_what_it_did(family):
    model, _ = minislice.load(FORMAT_1 / family)
    found = logits(model, Recipe(family, layers=1).tokens()[:1, :3])[0, -1, :3]
    assert torch.allclose(found, torch.tensor(EXPECTED[family]), rtol=1e-4)
    assert model.config.slicing["versions"].startswith("minislice 0.1.0")


def test_a_folder_of_format_2_says_nothing_of_deleted_neurons_and_blocks(tmp_path):
    model, tokens = sliced("phi")
    model.save_pretrained(tmp_path)
    edit_config(tmp_path, format_version=2, neurons=None, dropped=None)
    assert torch.equal(logits(minislice.load(tmp_path)[0], tokens), logits(model, tokens))


def test_what_is_loaded_from_shards_is_saved_again_with_the_same_bytes(tmp_path):
    model, _ = sliced("phi", adapter="low-rank")
    model.save_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len([*(tmp_path / "shards").glob("model-*.safetensors")]) > 2
    minislice.load(tmp_path / "shards")[0].save_pretrained(tmp_path / "second")
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")


def test_a_copy_saves_itself_and_a_given_state_dict_is_what_is_saved(tmp_path):
    model, tokens = sliced("opt")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.add_(1.0)
    for expected, weights in ((other, None), (model, model.state_dict())):
        other.save_pretrained(tmp_path, state_dict=weights)  # given, as transformers' Trainer does
        assert torch.equal(logits(minislice.load(tmp_path)[0], tokens), logits(expected, tokens))


def test_a_loaded_fused_model_is_sliced_and_remembers_that_its_head_was_tied(tmp_path):
    recipe = Recipe("opt")
    minislice.fuse(recipe.model()).save_pretrained(tmp_path / "fused")
    model, _ = minislice.load(tmp_path / "fused")
    minislice.slice_model(model, recipe.tokens(), width=9, head="fitted", slice_head=True)
    saved_equals_loaded(model, recipe.tokens(), tmp_path / "sliced")


@pytest.mark.parametrize("family", PAPERS)
def test_it_generates_as_the_model_that_was_saved_whatever_the_cache_and_the_padding(family, tmp_path):
    model, tokens = sliced(family, adapter="low-rank")
    model.generation_config.max_new_tokens = 7
    loaded, prompt = reloaded(model, tmp_path / "model"), tokens[:2, :5]
    expected = model.generate(prompt, num_beams=3)
    for cached in (True, False):
        assert torch.equal(loaded.generate(prompt, num_beams=3, use_cache=cached), expected)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompt], dim=1)
    generated = loaded.generate(padded, attention_mask=(torch.arange(8) >= 3)[None].expand(2, -1).long(), **OPTIONS)
    assert torch.equal(generated[:, 3:], loaded.generate(prompt, **OPTIONS))


def test_dtype_device_and_attention_are_those_that_were_asked_for(tmp_path):
    model, tokens = sliced("llama", adapter="low-rank")
    expected, folder = logits(model, tokens), tmp_path / "model"
    other = reloaded(model, folder, dtype=torch.bfloat16)
    assert minislice.load(folder, dtype=torch.bfloat16, device="cpu")[0].dtype == torch.bfloat16
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16} == {logits(other, tokens).dtype}
    placed = reloaded(model, folder, device_map="auto")
    assert torch.equal(logits(placed, tokens.to(placed.device)).cpu(), expected)
    eager = reloaded(model, folder, attn_implementation="eager")
    used = [network(each).blocks[0].attention.config._attn_implementation for each in (eager, placed)]
    assert used == ["eager", "sdpa"]
    torch.testing.assert_close(logits(eager, tokens), expected, rtol=1e-4, atol=1e-4)


def test_spread_over_devices_it_computes_the_same(tmp_path):
    model, tokens = sliced("opt", head="fitted")
    settings = {"max_memory": {"cpu": int(0.4 * minislice.parameters(model))}, "offload_folder": tmp_path / "off"}
    spread = reloaded(model, tmp_path / "model", device_map="auto", **settings)
    assert "disk" in spread.hf_device_map.values()
    assert not [name for name in spread.hf_device_map if ".blocks" in name]  # a layer is never split
    assert torch.equal(logits(spread, tokens), logits(model, tokens))


def test_gradients_reach_every_weight_with_and_without_checkpointing(tmp_path):
    model, tokens = sliced("phi", adapter="low-rank")
    plain, checkpointed = (reloaded(model, tmp_path / "model").train() for _ in range(2))
    old_name = checkpointed.gradient_checkpointing_enable
    getattr(checkpointed, "activation_checkpointing_enable", old_name)()
    passes = []
    for each in (plain, checkpointed):
        network(each).blocks[0].attention.register_forward_pre_hook(lambda *_: passes.append(1))
        each(input_ids=tokens, labels=tokens).loss.backward()
    assert len(passes) == 1 + 2  # the checkpointed activations are computed again
    gradients = dict(checkpointed.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad.any(), name
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_it_returns_the_mean_loss_and_what_each_layer_reads_and_takes_the_older_name_of_the_cache():
    model, tokens = sliced("opt", adapter="low-rank")
    model, expected = SlicedForCausalLM.wrap(model), logits(model, tokens)
    loss = nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model(input_ids=tokens, labels=tokens, return_dict=False)[0], loss)
    net, states = network(model), model(input_ids=tokens, output_hidden_states=True).hidden_states
    assert [state.shape[-1] for state in states] == net.widths[:: net.blocks_per_layer]
    assert torch.equal(net.head(states[-1]), expected)
    cache = model(input_ids=tokens[:, :-1], use_cache=True)[CACHE]
    last = model(input_ids=tokens[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(last, expected[:, -1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "head"), [("llama", "own"), ("phi", "tied"), ("gptj", "fitted")])
def test_embeddings_are_resized_and_replaced_and_saved_so(family, head, tmp_path):
    model, tokens = sliced(family, head=head)
    for size in (VOCABULARY + 9, VOCABULARY - 9):
        changed = copy.deepcopy(model)
        changed = SlicedForCausalLM.wrap(changed) if head != "tied" else changed
        changed.resize_token_embeddings(size, mean_resizing=False)
        after, common = logits(changed, tokens), min(size, VOCABULARY)
        assert after.shape[-1] == size
        torch.testing.assert_close(after[..., :common], logits(model, tokens)[..., :common])
        loaded = reloaded(changed, tmp_path / str(size))
        assert torch.equal(logits(loaded, tokens), after)
    loaded.set_input_embeddings(nn.Embedding(*loaded.get_input_embeddings().weight.shape))
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == (head != "own")


@pytest.mark.parametrize(("family", "method"), [("llama", "PromptTuningConfig"), ("gpt2", "PrefixTuningConfig")])
def test_pefts_prompts_have_the_width_of_the_embedding(family, method):
    peft = pytest.importorskip("peft")
    model, tokens = sliced(family, head="own")
    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompted = peft.get_peft_model(SlicedForCausalLM.wrap(model), config)
    assert prompted(input_ids=tokens[:1, :5]).logits.shape[1] == 5 + 3 * (method == "PromptTuningConfig")


def test_a_sliced_gpt2_computes_with_lora_in_its_embedding():
    peft = pytest.importorskip("peft")
    model, tokens = sliced(Recipe("gpt2"), head="own")
    expected, config = logits(model, tokens), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["wte"])
    assert torch.equal(logits(peft.get_peft_model(SlicedForCausalLM.wrap(model), config), tokens), expected)


def test_a_trainer_saves_beside_its_checkpoints_and_the_script_runs_again(tmp_path):
    arguments = transformers.TrainingArguments(tmp_path, max_steps=1, save_steps=1, report_to=[], use_cpu=True)
    for prepare in (SlicedForCausalLM.wrap, lambda model: model):
        model, tokens = sliced()
        model = prepare(model)
        data = [{"input_ids": row, "labels": row} for row in tokens]
        trainer = transformers.Trainer(model, arguments, train_dataset=data)
        trainer.train()
        trainer.save_model()
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), logits(model, tokens))
    assert (tmp_path / "checkpoint-1").is_dir()


def test_tokenizer_notes_and_config_travel_and_the_names_of_this_machine_do_not(tmp_path):
    private = tmp_path / "private" / "dense"
    Recipe("llama").model().float().save_pretrained(private)
    model, _ = minislice.load(private)
    minislice.slice_model(model, Recipe("llama").tokens(), width=12, head="own")
    words = minislice.load("mini-opt")[1]
    minislice.save(model, tmp_path / "model", tokenizer=words, notes={"perplexity": 12.3456789})
    loaded, tokenizer = minislice.load(tmp_path / "model")
    assert tokenizer("def f(x):")["input_ids"] == words("def f(x):")["input_ids"]
    assert loaded.config.slicing["perplexity"] == 12.3456789
    minislice.save(loaded, tmp_path / "again")
    assert "perplexity" in json.loads((tmp_path / "again" / "config.json").read_text())["slicing"]
    minislice.recover(loaded, Recipe("llama").tokens(), steps=1, held_out=0)
    minislice.save(loaded, tmp_path / "recovered")
    assert {"perplexity", "options"} - minislice.load(tmp_path / "recovered")[0].config.slicing.keys() == {"perplexity"}
    card = (tmp_path / "model" / "README.md").read_text()
    for line in ("dense", "perplexity | 12.35 |", "\n| head | own |", f"| parameters | {loaded.num_parameters():,} |"):
        assert line in card, line
    assert "private" not in card + (tmp_path / "model" / "config.json").read_text()


def test_a_registered_family_travels_with_a_saved_model(tmp_path, monkeypatch):
    sizes = {"vocab_size": 120, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    torch.manual_seed(1)
    config = transformers.PersimmonConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    model, tokens = AutoModelForCausalLM.from_config(config).double().eval(), Recipe("llama").tokens()
    monkeypatch.setitem(families.FAMILIES, "persimmon", minislice.propose(model).family)
    minislice.slice_model(model, tokens, width=8).save_pretrained(tmp_path / "model")
    monkeypatch.delitem(families.FAMILIES, "persimmon")
    assert torch.equal(logits(minislice.load(tmp_path / "model")[0], tokens), logits(model, tokens))
    assert families.FAMILIES.pop("persimmon").embeddings == ("embed_tokens",)


def test_saving_again_replaces_the_weights_and_all_of_the_folder_only_with_force(tmp_path):
    model, tokens = sliced()
    for name in ("notes.txt", "model_before.safetensors"):
        (tmp_path / name).write_text("mine")
    for settings in ({"max_shard_size": "5KB"}, {}):
        model.save_pretrained(tmp_path, **settings)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), logits(model, tokens))
        assert (tmp_path / "model.safetensors").exists() == (not settings)
    with pytest.raises(ValueError, match="force"):
        minislice.save(model, tmp_path)
    files = snapshot(tmp_path)
    assert files["notes.txt"] == files["model_before.safetensors"] == b"mine"
    with suppress(KeyboardInterrupt), patch.object(Path, "replace", side_effect=KeyboardInterrupt):
        model.save_pretrained(tmp_path)
    assert snapshot(tmp_path).keys() == files.keys()
    model.save_pretrained(tmp_path, force=True)
    assert "notes.txt" not in snapshot(tmp_path)


def test_files_that_no_saved_model_has_are_refused(tmp_path):
    (tmp_path / "heads.py").write_text("mine")
    with pytest.raises(ValueError, match=r"files that aren't a saved model's: heads\.py"):
        sliced()[0].save_pretrained(tmp_path)
    assert snapshot(tmp_path) == {"heads.py": b"mine"}


LAST_SHARD = r"model-\d+-of-\d+\.safetensors"
DAMAGES = {
    "cut off": (lambda path: path.write_bytes(path.read_bytes()[:-5]), LAST_SHARD + ".* cut off"),
    "a shard less": (Path.unlink, f"{LAST_SHARD}', which isn't in the same folder"),
    "newer": (lambda path: edit_config(path.parent, format_version=4), r"config\.json.*newer minislice \(format 4"),
    "other widths": (lambda path: edit_config(path.parent, widths=[11, 12, 12, 12, 20]), r"safetensors.*\[120, 12\]"),
    "other head": (lambda path: edit_config(path.parent, head="full"), "'head' must be one of linear, tied"),
    "no block 4": (lambda path: edit_config(path.parent, dropped=[4]), "a model of 3 blocks needs 4 entries"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_gives_one_error_that_names_it(damage, tmp_path):
    change, message = DAMAGES[damage]
    model, _ = sliced("llama", width=12, adapter="full", head="own")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    change(max(tmp_path.glob("*.safetensors")))
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        minislice.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_transformers_own_loader_refuses_missing_tensors_too(tmp_path):
    sliced("phi")[0].save_pretrained(tmp_path)
    edit(tmp_path / "model.safetensors", lambda tensors: tensors.popitem())
    with pytest.raises(ValueError, match="are missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["absent", "tests", "tests/models.py"])
def test_what_is_no_model_is_said_to_be_none(file):
    with pytest.raises(ValueError, match=r"no such folder|config\.json doesn't exist|is a file"):
        minislice.load(Path(__file__).parents[1] / file)


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("minislice.storage.checkpoint.PreTrainedConfig", None)  # nothing of transformers' is asked
    with pytest.raises(ValueError, match=r"'absent/model'.*127\.0\.0\.1:9 can't be reached.*folder.*HF_HUB_OFFLINE=1"):
        minislice.load("absent/model")


@pytest.mark.parametrize("name", [".", "../models/trained", "{}/models/trained", "models/trained"])
def test_a_card_names_the_folder_that_a_model_came_from_and_not_its_place_also_when_it_is_gone(
    name, tmp_path, monkeypatch
):
    recipe, folder = Recipe("llama"), tmp_path / "models" / "trained"
    recipe.model().save_pretrained(folder)
    monkeypatch.chdir(tmp_path if name.startswith("models") else folder if name == "." else folder.parent)
    model, _ = minislice.load(name.format(tmp_path))
    wrapped = SlicedForCausalLM.wrap(minislice.slice_model(model, recipe.tokens(), width=6))
    assert made_by(wrapped)["base_model"] == "trained"
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(folder)
    assert made_by(wrapped)["base_model"] == "trained"
    model.config.name_or_path = "owner/on-the-hub"
    assert made_by(SlicedForCausalLM.wrap(model))["base_model"] == "owner/on-the-hub"
