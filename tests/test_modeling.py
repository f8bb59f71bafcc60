"""A sliced model among transformers' own tools: resizing, generating, prompts, `Trainer`, saving again."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from family_models import FamilyRecipe
from models import VOCABULARY, Recipe
from properties import logits
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PersimmonConfig,
    Trainer,
    TrainingArguments,
)

import minislice
from minislice.architecture.families import FAMILIES
from minislice.architecture.modeling import SlicedForCausalLM


def sliced(family: str = "llama", tied: bool = True, **options):
    recipe = FamilyRecipe(family, tied=tied)
    return minislice.slice_model(recipe.model(), recipe.tokens(), **options), recipe.tokens().clamp(max=100)


@pytest.mark.parametrize(
    ("family", "head", "wrapped"),
    [("llama", "own", True), ("phi", "tied", False), ("gptj", "fitted", True), ("opt", "tied", True)],
)
def test_a_model_whose_vocabulary_is_resized_is_saved_as_it_is(family, head, wrapped, tmp_path):
    model, ids = sliced(family, head=head)
    for size in (VOCABULARY + 9, VOCABULARY - 9):
        changed = copy.deepcopy(model)
        changed = SlicedForCausalLM.wrap(changed) if wrapped else changed
        changed.resize_token_embeddings(size, mean_resizing=False)
        after = logits(changed, ids)
        common = min(size, VOCABULARY)
        assert after.shape[-1] == size
        torch.testing.assert_close(after[:, :common], logits(model, ids)[:, :common])
        changed.save_pretrained(tmp_path / str(size))
        assert torch.equal(logits(minislice.load(tmp_path / str(size))[0], ids), after)


def test_what_is_changed_in_the_config_is_saved(tmp_path):
    model = SlicedForCausalLM.wrap(sliced()[0])
    model.config.base.rms_norm_eps, model.config.eos_token_id = 0.5, 7
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.base.config.rms_norm_eps == 0.5 and loaded.config.eos_token_id == 7


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_embeddings_are_generated_from(family):
    model, ids = sliced(family, width=8)
    model, prompt = SlicedForCausalLM.wrap(model), ids[:1, :6]
    options = {"max_new_tokens": 4, "do_sample": False}
    found = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **options)
    assert torch.equal(found, model.generate(prompt, **options)[:, 6:])


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "PromptTuningConfig"), ("gpt2", "PrefixTuningConfig"), ("mixtral", "PromptTuningConfig")],
)
def test_pefts_prompts_have_the_width_of_the_embedding(family, method):
    peft = pytest.importorskip("peft")
    model, ids = sliced(family, width=8, head="own")
    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompted = peft.get_peft_model(SlicedForCausalLM.wrap(model.float()), config)
    assert prompted(input_ids=ids[:1, :5]).logits.shape[1] == 5 + 3 * (method == "PromptTuningConfig")
    names = ["hidden_size", "num_hidden_layers"]
    assert [SlicedForCausalLM.wrap(model).config.to_dict()[name] for name in names] == [8, 2]


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_trainer_saves_beside_its_checkpoints_and_the_script_runs_again(wrapped, tmp_path):
    for _ in range(2):
        model, ids = sliced(width=8)
        model = (SlicedForCausalLM.wrap(model) if wrapped else model).float()
        arguments = TrainingArguments(tmp_path, max_steps=2, save_steps=1, report_to=[], use_cpu=True)
        trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
        trainer.train()
        trainer.save_model()
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), logits(model, ids))
    assert (tmp_path / "checkpoint-2").is_dir()


def test_saving_again_replaces_the_weights_and_nothing_of_anybody_else(tmp_path):
    model, ids = sliced(width=8)
    for name in ("notes.txt", "README.md"):
        (tmp_path / name).write_text("mine")
    for settings in ({}, {"max_shard_size": "5KB"}, {}, {"max_shard_size": "9KB"}):
        model.save_pretrained(tmp_path, **settings)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), logits(model, ids))
        assert len({*tmp_path.glob("model*")} & {tmp_path / "model.safetensors"}) == (not settings)
    assert [(tmp_path / name).read_text() for name in ("notes.txt", "README.md")] == ["mine", "mine"]
    with pytest.raises(ValueError, match="force"):
        minislice.save(model, tmp_path)


@pytest.mark.parametrize("name", ["heads.py", "config.json", "model.safetensors"])
def test_files_that_no_saved_model_has_are_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"files that aren't a saved model's: {name}"):
        sliced()[0].save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def persimmon():
    sizes = {"vocab_size": 120, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 64}
    torch.manual_seed(1)
    config = PersimmonConfig(num_hidden_layers=2, num_attention_heads=2, **sizes)
    return AutoModelForCausalLM.from_config(config).double().eval()


def test_a_registered_family_travels_with_a_saved_model(tmp_path, monkeypatch):
    model, ids = persimmon(), Recipe("llama").tokens()
    monkeypatch.setitem(FAMILIES, "persimmon", minislice.propose(model).family)
    minislice.slice_model(model, ids, width=8).save_pretrained(tmp_path / "model")
    monkeypatch.delitem(FAMILIES, "persimmon")
    assert torch.equal(logits(minislice.load(tmp_path / "model")[0], ids), logits(model, ids))
    assert FAMILIES.pop("persimmon").embeddings == ("embed_tokens",)
    own = minislice.slice_model(Recipe("opt").model(), ids, width=8)
    own.save_pretrained(tmp_path / "own")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["family"] is None


class OurConfig(LlamaConfig):
    model_type = "ours"


class OurForCausalLM(LlamaForCausalLM):
    config_class = OurConfig


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, monkeypatch):
    config = Recipe("llama").model().config.to_dict() | {"model_type": "ours"}
    model, ids = OurForCausalLM(OurConfig(**config)).double(), Recipe("llama").tokens()
    monkeypatch.setitem(FAMILIES, "ours", FAMILIES["llama"])
    minislice.slice_model(model, ids, width=8)
    with pytest.raises(ValueError, match=r"AutoConfig.register\('ours', OurConfig\)"):
        model.save_pretrained(tmp_path / "model")
    AutoConfig.register("ours", OurConfig)
    AutoModelForCausalLM.register(OurConfig, OurForCausalLM)
    by_layer = replace(FAMILIES["llama"], blocks=lambda config, layer: FAMILIES["llama"].blocks[:: 1 - 2 * layer])
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="a function for `blocks`"):
        patch.setitem(FAMILIES, "ours", by_layer)
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(minislice.load(tmp_path / "model")[0], ids), logits(model, ids))
