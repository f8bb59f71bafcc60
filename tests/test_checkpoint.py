"""A sliced model on disk is the sliced model: every bit of its logits, and everything a Hugging Face model can do."""

import copy
import json
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from family_models import FamilyRecipe
from models import FAMILIES, VOCABULARY, Recipe
from safetensors.torch import load_file
from streamed import edit, logits, snapshot
from torch import nn
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture import building, families, modeling
from minislice.architecture.building import form_of
from minislice.architecture.heads import FittedHead
from minislice.architecture.modeling import CACHE, SlicedForCausalLM
from minislice.architecture.network import network

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = ("full", "low-rank", "none")
OPTIONS = {"do_sample": False, "max_new_tokens": 6}


def sliced(recipe="llama", *, dtype=torch.float32, **options):
    """A random model, sliced in place, and tokens. Only parameters change dtype, as in `from_pretrained`."""
    recipe = Recipe(recipe) if recipe in FAMILIES else recipe
    model, tokens = recipe.model(), recipe.tokens().clamp(max=100)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return minislice.slice_model(model, tokens, **{"width": 8, **options}), tokens


def reloaded(model, folder: Path, **settings) -> SlicedForCausalLM:
    """The model saved, and loaded by transformers."""
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


# The same function, the same size


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


# Every family with every dtype and every form, each pair of them once
PAIRWISE = [(family, dtype, FORMS[(f + d) % 3]) for f, family in enumerate(FAMILIES) for d, dtype in enumerate(DTYPES)]


@pytest.mark.parametrize(("family", "dtype", "form"), PAIRWISE)
def test_a_loaded_model_is_the_saved_one(family, dtype, form, tmp_path):
    slice_head = form == "none"
    model, tokens = sliced(family, dtype=dtype, adapter=form, slice_head=slice_head)
    loaded = saved_equals_loaded(model, tokens, tmp_path / "model")
    head = ("linear", "own") if slice_head else ("tied", "tied")  # nobody said what becomes of it
    assert (loaded.config.head, loaded.config.slicing["options"]["head"]) == head


EPS_OF_A_MODULE = Recipe("opt", eps=0.5)  # OPT's config has no eps


@pytest.mark.parametrize("recipe", [EPS_OF_A_MODULE, Recipe("phi")], ids=["fused opt", "rotated phi"])
def test_a_fused_or_rotated_model_survives_saving(recipe, tmp_path):
    prepare = minislice.fuse if recipe.family == "opt" else partial(minislice.rotate, per_block=True)
    saved_equals_loaded(prepare(recipe.model()), recipe.tokens(), tmp_path / "model")


MISTAKES = {
    "description": lambda right: lambda model: right(model) | {"norm_eps": [1e-5] * 5},
    "RMSNorm": lambda right: lambda D, eps: right(D // 2, eps),
    "_tied": lambda right: lambda base: None,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_saved_equals_loaded_fails_on_a_mistake(name, tmp_path, monkeypatch):
    model, tokens = minislice.fuse(EPS_OF_A_MODULE.model(), keep_tie=True), EPS_OF_A_MODULE.tokens()
    place = modeling if hasattr(modeling, name) else building
    monkeypatch.setattr(place, name, MISTAKES[name](getattr(place, name)))
    with pytest.raises((AssertionError, ValueError), match=r"logits differ|1 tensors are missing"):
        saved_equals_loaded(model, tokens, tmp_path / "wrong")


FORMAT_1 = Path(__file__).with_name("format1")  # saved by minislice 0.1.0
EXPECTED = json.loads((FORMAT_1 / "expected.json").read_text())  # three logits, recorded when the folders were saved


@pytest.mark.parametrize("family", EXPECTED)
def test_a_folder_of_format_1_computes_what_it_did(family):
    model, _ = minislice.load(FORMAT_1 / family)
    found = logits(model, Recipe(family, layers=1).tokens()[:1, :3])[0, -1, :3]
    assert torch.allclose(found, torch.tensor(EXPECTED[family]), rtol=1e-4)
    assert model.config.slicing["versions"].startswith("minislice 0.1.0")


def config(**changes):
    """Other values in a folder's config."""

    def change(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | changes))

    return change


def test_a_folder_of_format_2_says_nothing_of_deleted_neurons_and_blocks(tmp_path):
    model, tokens = sliced("phi")
    model.save_pretrained(tmp_path)
    config(format_version=2, neurons=None, dropped=None)(tmp_path)
    assert torch.equal(logits(minislice.load(tmp_path)[0], tokens), logits(model, tokens))


@pytest.mark.parametrize(("family", "slice_head"), [("opt", True), ("llama", False)])
def test_a_fitted_head_is_stored_once_and_tied_again(family, slice_head, tmp_path):
    model, tokens = sliced(family, head="fitted", slice_head=slice_head)
    loaded = saved_equals_loaded(model, tokens, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    embedding = loaded.get_input_embeddings().weight
    assert sum(tensor.shape == embedding.shape for tensor in stored.values()) == 1
    (tied,) = loaded.all_tied_weights_keys.items()  # what transformers ties after loading, and keeps on one device
    assert all(loaded.get_parameter(name) is embedding for name in tied)


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


def test_a_loaded_fused_model_is_sliced_and_remembers_whether_its_head_was_tied(tmp_path):
    for tied in (False, True):
        recipe = Recipe("opt", tied=tied)
        minislice.fuse(recipe.model()).save_pretrained(tmp_path / f"fused-{tied}")
        model, _ = minislice.load(tmp_path / f"fused-{tied}")
        if not tied:
            with pytest.raises(ValueError, match="shares the embedding"):
                minislice.slice_model(model, recipe.tokens(), width=9, head="fitted")
    minislice.slice_model(model, recipe.tokens(), width=9, head="fitted", slice_head=True)
    loaded = saved_equals_loaded(model, recipe.tokens(), tmp_path / "sliced")
    assert isinstance(loaded.get_output_embeddings(), FittedHead) and set(loaded.config.widths) == {9}
    with pytest.raises(ValueError, match="already"):
        minislice.slice_model(loaded, recipe.tokens())


# What a Hugging Face model can do


@pytest.mark.parametrize("family", FAMILIES)
def test_it_generates_as_the_model_that_was_saved_whatever_the_cache_and_the_padding(family, tmp_path):
    model, tokens = sliced(family, adapter="low-rank")
    model.generation_config.max_new_tokens = 7
    loaded, prompt = reloaded(model, tmp_path / "model"), tokens[:2, :5]
    assert loaded.generation_config.max_new_tokens == 7
    for how in ({"num_beams": 3}, {"do_sample": True, "top_k": 5}):
        outputs = []
        for each, cached in ((model, True), (loaded, True), (loaded, False)):
            torch.manual_seed(0)
            outputs.append(each.generate(prompt, **{**OPTIONS, **how}, use_cache=cached))
        assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompt], dim=1)
    generated = loaded.generate(padded, attention_mask=(torch.arange(8) >= 3)[None].expand(2, -1).long(), **OPTIONS)
    assert torch.equal(generated[:, 3:], loaded.generate(prompt, **OPTIONS))


def test_the_cache_has_both_of_its_names_and_neither_is_deprecated():
    model, tokens = sliced("opt")
    model = SlicedForCausalLM.wrap(model)
    for name in ("cache", "past_key_values"):
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("error", FutureWarning)
            first = model(input_ids=tokens[:, :-1], use_cache=True)[CACHE]
            last = model(input_ids=tokens[:, -1:], use_cache=True, **{name: first}).logits
        torch.testing.assert_close(last, logits(model, tokens)[:, -1:], rtol=1e-4, atol=1e-4)


def test_dtype_device_and_attention_are_those_that_were_asked_for(tmp_path):
    model, tokens = sliced("llama", adapter="low-rank")
    expected, folder = logits(model, tokens), tmp_path / "model"
    for name, dtype in zip(["dtype", "torch_dtype", "dtype"], DTYPES, strict=True):
        other = reloaded(model, folder, **{name: dtype})
        assert minislice.load(folder, dtype=dtype, device="cpu")[0].dtype == dtype
        assert {parameter.dtype for parameter in other.parameters()} == {dtype} == {logits(other, tokens).dtype}
    placed = reloaded(model, folder, device_map="auto")
    assert torch.equal(logits(placed, tokens.to(placed.device)).cpu(), expected)
    eager = reloaded(model, folder, attn_implementation="eager")
    used = [network(each).blocks[0].attention.config._attn_implementation for each in (eager, placed)]
    assert used == ["eager", "sdpa"]
    assert eager(input_ids=tokens, output_attentions=True).attentions[0].shape[-2:] == (30, 30)
    torch.testing.assert_close(logits(eager, tokens), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "head", "share"), [("phi", "tied", 0.86), ("opt", "fitted", 0.1)])
def test_spread_over_devices_it_computes_the_same(family, head, share, tmp_path):
    model, tokens = sliced(family, head=head)
    settings = {"max_memory": {"cpu": int(share * 4 * minislice.parameters(model))}, "offload_folder": tmp_path / "off"}
    spread = reloaded(model, tmp_path / "model", device_map="auto", **settings)
    assert "disk" in spread.hf_device_map.values()
    assert not [name for name in spread.hf_device_map if ".blocks" in name]  # a layer is never split
    assert torch.equal(logits(spread, tokens), logits(model, tokens))


@pytest.mark.parametrize(("family", "form"), [("llama", "full"), ("phi", "low-rank")])
def test_gradients_reach_every_weight_with_and_without_checkpointing(family, form, tmp_path):
    model, tokens = sliced(family, adapter=form)
    plain, checkpointed = (reloaded(model, tmp_path / "model").train() for _ in range(2))
    getattr(
        checkpointed, "activation_checkpointing_enable", checkpointed.gradient_checkpointing_enable
    )()  # its old name
    for each in (plain, checkpointed):
        each(input_ids=tokens, labels=tokens).loss.backward()
    gradients = dict(checkpointed.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad.any(), name
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_it_returns_the_mean_loss_and_what_each_layer_reads():
    model, tokens = sliced("opt", adapter="low-rank")
    model, expected = SlicedForCausalLM.wrap(model), logits(model, tokens)
    loss = nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model(input_ids=tokens, labels=tokens, return_dict=False)[0], loss)
    net, states = network(model), model(input_ids=tokens, output_hidden_states=True).hidden_states
    assert [state.shape[-1] for state in states] == net.widths[:: net.blocks_per_layer]
    assert torch.equal(net.head(states[-1]), expected)
    assert model(input_ids=tokens).hidden_states is None


@pytest.mark.parametrize(
    ("family", "head", "wrapped"), [("llama", "own", True), ("phi", "tied", False), ("gptj", "fitted", True)]
)
def test_embeddings_are_resized_and_replaced_and_saved_so(family, head, wrapped, tmp_path):
    model, tokens = sliced(FamilyRecipe(family), head=head)
    for size in (VOCABULARY + 9, VOCABULARY - 9):
        changed = copy.deepcopy(model)
        changed = SlicedForCausalLM.wrap(changed) if wrapped else changed
        changed.resize_token_embeddings(size, mean_resizing=False)
        after, common = logits(changed, tokens), min(size, VOCABULARY)
        assert after.shape[-1] == size
        torch.testing.assert_close(after[..., :common], logits(model, tokens)[..., :common])
        loaded = reloaded(changed, tmp_path / str(size))
        assert torch.equal(logits(loaded, tokens), after)
    loaded.set_input_embeddings(nn.Embedding(*loaded.get_input_embeddings().weight.shape))
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == (head != "own")


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_embeddings_are_generated_from(family):
    model, tokens = sliced(FamilyRecipe(family))
    model, prompt = SlicedForCausalLM.wrap(model), tokens[:1, :6]
    found = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **OPTIONS)
    assert torch.equal(found, model.generate(prompt, **OPTIONS)[:, 6:])


@pytest.mark.parametrize(("family", "method"), [("llama", "PromptTuningConfig"), ("gpt2", "PrefixTuningConfig")])
def test_pefts_prompts_have_the_width_of_the_embedding(family, method):
    peft = pytest.importorskip("peft")
    model, tokens = sliced(FamilyRecipe(family), head="own")
    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompted = peft.get_peft_model(SlicedForCausalLM.wrap(model), config)
    assert prompted(input_ids=tokens[:1, :5]).logits.shape[1] == 5 + 3 * (method == "PromptTuningConfig")


def test_a_trainer_saves_beside_its_checkpoints_and_the_script_runs_again(tmp_path):
    for wrapped in (True, False):
        model, tokens = sliced()
        model = SlicedForCausalLM.wrap(model) if wrapped else model
        arguments = transformers.TrainingArguments(tmp_path, max_steps=1, save_steps=1, report_to=[], use_cpu=True)
        data = [{"input_ids": row, "labels": row} for row in tokens]
        trainer = transformers.Trainer(model, arguments, train_dataset=data)
        trainer.train()
        trainer.save_model()
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), logits(model, tokens))
    assert (tmp_path / "checkpoint-1").is_dir()


# What travels along


def test_tokenizer_notes_and_config_travel_and_the_names_of_this_machine_do_not(tmp_path):
    private = tmp_path / "private" / "dense"
    Recipe("llama").model().float().save_pretrained(private)
    model, _ = minislice.load(private)
    minislice.slice_model(model, Recipe("llama").tokens(), width=12, adapter="none")
    words, notes = minislice.load("mini-opt")[1], {"calibration": "a | b", "perplexity": 12.3456789}
    minislice.save(model, tmp_path / "model", tokenizer=words, notes=notes)
    loaded, tokenizer = minislice.load(tmp_path / "model")
    assert tokenizer("def f(x):")["input_ids"] == words("def f(x):")["input_ids"]
    assert loaded.config.slicing["perplexity"] == 12.3456789 and loaded.config.slicing["options"]["adapter"] == "none"
    card = (tmp_path / "model" / "README.md").read_text()
    size = f"| parameters | {loaded.num_parameters():,} |"
    for line in ("dense", "| calibration | a \\| b |", "| perplexity | 12.35 |", "| widths | 12 to 20 of 20 |", size):
        assert line in card, line
    assert "private" not in card + (tmp_path / "model" / "config.json").read_text()
    model = SlicedForCausalLM.wrap(model)
    model.config.base._name_or_path = "facebook/opt-125m"
    minislice.save(model, tmp_path / "named")
    assert "base_model: facebook/opt-125m" in (tmp_path / "named" / "README.md").read_text()


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


class OurConfig(transformers.LlamaConfig):
    model_type = "ours"


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, monkeypatch):
    model, tokens = Recipe("llama").model(), Recipe("llama").tokens()
    model.config = OurConfig(**model.config.to_dict() | {"model_type": "ours"})
    monkeypatch.setitem(families.FAMILIES, "ours", families.FAMILIES["llama"])
    minislice.slice_model(model, tokens, width=8)
    with pytest.raises(ValueError, match=r"AutoConfig.register\('ours', OurConfig\)"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="isn't sliced"):
        minislice.save(Recipe("opt").model(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


# Whole or not at all, and nothing of anybody else


def test_saving_again_replaces_the_weights_and_all_of_the_folder_only_with_force(tmp_path, monkeypatch):
    model, tokens = sliced()
    (tmp_path / "notes.txt").write_text("mine")
    for settings in ({"max_shard_size": "5KB"}, {}):
        model.save_pretrained(tmp_path, **settings)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), logits(model, tokens))
        assert (tmp_path / "model.safetensors").exists() == (not settings)
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match="force"):
        minislice.save(model, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(modeling, "model_card", lambda *arguments: 1 / 0)  # which is written last
        minislice.save(model, tmp_path, force=True)
    assert snapshot(tmp_path) == before and before["notes.txt"] == b"mine"
    model.save_pretrained(tmp_path, force=True)
    assert "notes.txt" not in snapshot(tmp_path)


def test_files_that_no_saved_model_has_are_not_overwritten(tmp_path):
    (tmp_path / "heads.py").write_text("mine")
    with pytest.raises(ValueError, match=r"files that aren't a saved model's: heads\.py"):
        sliced()[0].save_pretrained(tmp_path)
    assert snapshot(tmp_path) == {"heads.py": b"mine"}


# One clear error each, naming the file or the folder; what is wrong with a dense model's folder: test_bad_models


def last_file(change):
    return lambda folder: change(sorted(folder.glob("*.safetensors"))[-1])


def tensors(change):
    return last_file(lambda path: edit(path, change))


LAST_SHARD = r"model-\d+-of-\d+\.safetensors"
DAMAGES = {
    "cut off": (last_file(lambda path: path.write_bytes(path.read_bytes()[:-5])), LAST_SHARD + ".* cut off"),
    "a shard less": (last_file(Path.unlink), f"{LAST_SHARD}', which isn't in the same folder"),
    "a tensor less": (tensors(lambda t: t.pop(next(iter(t)))), "1 tensors are missing"),
    "newer": (config(format_version=4), r"config\.json.*newer minislice \(format 4"),
    "too wide": (config(widths=[12, 12, 12, 12, 21]), r"config\.json.*'widths'.*20"),
    "other widths": (config(widths=[11, 12, 12, 12, 20]), r"safetensors.*\[120, 12\]"),
    "adapters": (config(adapters=["full", "full", "full", 13]), r"config\.json.*'adapters' has 13 for block 3"),
    "head": (config(head="shared"), r"config\.json.*'head'"),
    "neurons": (config(neurons=[8, 41]), r"'neurons' must be a list of 2 numbers, .* which are \[40, 40\]; got"),
    "no block 4": (config(dropped=[4]), r"'dropped' must be a list of blocks, each once, .* 0 to 3; got"),
    "a block less": (config(dropped=[1]), "a model of 3 blocks needs 4 entries in 'widths', got 5"),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_gives_one_error_that_names_it(damage, tmp_path):
    change, message = DAMAGES[damage]
    model, _ = sliced("llama", width=12, adapter="full", head="own")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    change(tmp_path)
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        minislice.load(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_transformers_own_loader_refuses_damage_too(tmp_path):
    sliced("phi")[0].save_pretrained(tmp_path)
    for damage in ("a tensor less", "no block 4"):
        DAMAGES[damage][0](tmp_path)
        with pytest.raises(ValueError, match=r"are missing|'dropped' must"):
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
