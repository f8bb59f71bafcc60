"""A sliced model on disk is the sliced model: every bit of its logits, and everything a Hugging Face model can do."""

import copy
import json
import logging
import pickle
import warnings
from dataclasses import replace
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
from minislice.measuring.cost import step_seconds

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


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The same function, the same size


def saved_equals_loaded(model, tokens, folder: Path) -> SlicedForCausalLM:
    before = logits(model, tokens)
    model.save_pretrained(folder)
    assert torch.equal(logits(model, tokens), before), "saving changed the model"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert type(loaded) is SlicedForCausalLM and loaded.dtype == model.dtype and not loaded.training
    assert torch.equal(logits(loaded, tokens), before), "logits differ"
    assert [form_of(block) for block in network(loaded).blocks] == [form_of(block) for block in network(model).blocks]
    parameters = minislice.parameters(model)
    assert loaded.num_parameters() == minislice.parameters(loaded) == parameters, "parameters differ"
    path = folder / "model.safetensors"  # which has the parameters and nothing else
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + model.dtype.itemsize * parameters
    assert not [name for name in files_of(folder) if name.endswith((".bin", ".pt", ".pkl"))]
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


@pytest.mark.parametrize(
    ("recipe", "prepare"),
    [
        (EPS_OF_A_MODULE, minislice.fuse),
        (Recipe("llama"), minislice.rotate),
        (Recipe("phi"), partial(minislice.rotate, per_block=True)),
    ],
)
def test_a_fused_or_rotated_model_survives_saving(recipe, prepare, tmp_path):
    saved_equals_loaded(prepare(recipe.model()), recipe.tokens(), tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("description", lambda right: lambda model: right(model) | {"norm_eps": [1e-5] * 5}),
        ("RMSNorm", lambda right: lambda D, eps: right(D // 2, eps)),
        ("_tied", lambda right: lambda base: None),
    ],
)
def test_saved_equals_loaded_fails_on_a_mistake(name, wrong, tmp_path, monkeypatch):
    model, tokens = minislice.fuse(EPS_OF_A_MODULE.model(), keep_tie=True), EPS_OF_A_MODULE.tokens()
    place = modeling if hasattr(modeling, name) else building
    monkeypatch.setattr(place, name, wrong(getattr(place, name)))
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


@pytest.mark.parametrize(("family", "slice_head"), [("opt", True), ("llama", False)])
def test_a_tied_head_is_stored_once_and_tied_again(family, slice_head, tmp_path):
    model, tokens = sliced(family, head="fitted", slice_head=slice_head)
    loaded = saved_equals_loaded(model, tokens, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    embedding = loaded.get_input_embeddings().weight
    assert sum(tensor.shape == embedding.shape for tensor in stored.values()) == 1
    (tied,) = loaded.all_tied_weights_keys.items()  # what transformers ties after loading, and keeps on one device
    assert all(loaded.get_parameter(name) is embedding for name in tied)


def test_what_is_loaded_from_shards_is_saved_again_with_the_same_bytes(tmp_path):
    model, tokens = sliced("phi", adapter="low-rank")
    model.save_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len([*(tmp_path / "shards").glob("model-*.safetensors")]) > 2
    loaded, _ = minislice.load(tmp_path / "shards")
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    loaded.save_pretrained(tmp_path / "second")
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_saves_itself_and_a_given_state_dict_is_what_is_saved(copied, tmp_path):
    model, tokens = sliced("opt")
    other, weights = copied(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        other.lm_head.weight.add_(1.0)
    other.save_pretrained(tmp_path / "copy")
    other.save_pretrained(tmp_path / "given", state_dict=weights)  # as transformers' Trainer does
    for name, each in {"copy": other, "given": model}.items():
        assert torch.equal(logits(minislice.load(tmp_path / name)[0], tokens), logits(each, tokens))


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


# What a Hugging Face model can do


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """A sliced model in memory, its tokens, and its folder; not to be changed."""
    model, tokens = sliced(request.param, adapter="low-rank")
    folder = tmp_path_factory.mktemp(request.param) / "model"
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder)
    return model, tokens, folder


@pytest.fixture
def loaded(saved):
    """The model loaded from that folder, to be changed by one test."""
    return AutoModelForCausalLM.from_pretrained(saved[2])


def test_it_generates_as_the_model_that_was_saved_whatever_the_cache_and_the_padding(saved, loaded):
    model, tokens, _ = saved
    assert loaded.generation_config.max_new_tokens == 7
    prompt = tokens[:2, :5]
    for how in ({}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}):
        outputs = []
        for each, cached in ((model, True), (loaded, True), (loaded, False)):
            torch.manual_seed(0)
            outputs.append(each.generate(prompt, **{**OPTIONS, **how}, use_cache=cached))
        assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), prompt], dim=1)
    generated = loaded.generate(padded, attention_mask=(torch.arange(8) >= 3)[None].expand(2, -1).long(), **OPTIONS)
    assert torch.equal(generated[:, 3:], loaded.generate(prompt, **OPTIONS))


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_has_both_of_its_names_and_neither_is_deprecated(name, saved, loaded, monkeypatch):
    model, tokens, _ = saved

    def fail(logger, message, *arguments):
        raise AssertionError(message)

    monkeypatch.setattr(logging.Logger, "warning_once", fail)  # how transformers deprecates the attribute
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        first = loaded(input_ids=tokens[:, :-1], use_cache=True)[CACHE]
        last = loaded(input_ids=tokens[:, -1:], use_cache=True, **{name: first}).logits
        step_seconds(loaded, length=2)
        loaded.generate(tokens[:1, :4], **OPTIONS)
    torch.testing.assert_close(last, logits(model, tokens)[:, -1:], rtol=1e-4, atol=1e-4)


def test_every_parameter_takes_the_dtype_and_the_device_asked_for(saved):
    model, tokens, folder = saved
    for name, dtype in zip(["dtype", "torch_dtype", "dtype"], DTYPES, strict=True):
        other = AutoModelForCausalLM.from_pretrained(folder, **{name: dtype})
        assert {parameter.dtype for parameter in other.parameters()} == {dtype} == {logits(other, tokens).dtype}
    placed = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
    assert torch.equal(logits(placed, tokens.to(placed.device)).cpu(), logits(model, tokens))


@pytest.mark.parametrize(
    ("family", "head", "share"),
    [("opt", "own", 0.86), ("phi", "tied", 0.86), ("opt", "fitted", 0.1), ("llama", "tied", 0.1)],
)
def test_spread_over_devices_it_computes_the_same(family, head, share, tmp_path):
    model, tokens = sliced(family, head=head)
    model.save_pretrained(tmp_path / "model")
    settings = {"max_memory": {"cpu": int(share * 4 * minislice.parameters(model))}, "offload_folder": tmp_path / "off"}
    spread = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map="auto", **settings)
    assert "disk" in spread.hf_device_map.values()
    assert not [name for name in spread.hf_device_map if ".blocks" in name]  # a layer is never split
    assert torch.equal(logits(spread, tokens), logits(model, tokens))


def test_the_attention_asked_for_is_the_attention_used(saved, loaded):
    _, tokens, folder = saved
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    used = [network(each).blocks[0].attention.config._attn_implementation for each in (eager, loaded)]
    assert used == ["eager", "sdpa"]
    assert eager(input_ids=tokens, output_attentions=True).attentions[0].shape[-2:] == (30, 30)
    torch.testing.assert_close(logits(eager, tokens), logits(loaded, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "form"), [*zip(FAMILIES, FORMS, strict=True)])
def test_gradients_reach_every_weight_with_and_without_checkpointing(family, form, tmp_path):
    model, tokens = sliced(family, adapter=form, **({"head": "fitted"} if form == "none" else {}))
    model.save_pretrained(tmp_path / "model")
    gradients = []
    for checkpointing in (False, True):
        trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model").train()
        if hasattr(trained.config.base, "dropout"):
            for block in network(trained).blocks:
                block.dropout.p = 0.0  # OPT's default isn't zero
        if checkpointing:
            getattr(trained, "activation_checkpointing_enable", trained.gradient_checkpointing_enable)()  # its old name
        trained(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in trained.named_parameters()})
    # A key's bias shifts every score of a row alike, and softmax takes no notice: there it is rounding.
    silent = [n for n, g in gradients[0].items() if g is None or (not g.any() and not n.endswith("k_proj.bias"))]
    assert len(gradients[0]) > 10 and not silent
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_it_returns_the_mean_loss_and_what_each_layer_reads(saved, loaded):
    model, tokens, _ = saved
    expected = nn.functional.cross_entropy(logits(loaded, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loaded(input_ids=tokens, labels=tokens, return_dict=False)[0], expected)
    output = loaded(input_ids=tokens, labels=tokens, output_hidden_states=True)
    torch.testing.assert_close(output.loss, expected)
    net, states = network(loaded), output.hidden_states
    assert [state.shape[-1] for state in states] == net.widths[:: net.blocks_per_layer]
    assert torch.equal(net.head(states[-1]), logits(model, tokens))
    assert loaded(input_ids=tokens).hidden_states is None


def test_minislice_measures_a_loaded_model_and_refuses_to_slice_it_again(saved, loaded):
    model, tokens, _ = saved
    assert minislice.perplexity(loaded, tokens) == minislice.perplexity(model, tokens)
    for action in (minislice.rotate, lambda m: minislice.slice_model(m, tokens), minislice.fuse):
        with pytest.raises(ValueError, match="already"):
            action(loaded)


@pytest.mark.parametrize(
    ("family", "head", "wrapped"),
    [("llama", "own", True), ("phi", "tied", False), ("gptj", "fitted", True), ("opt", "tied", True)],
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
        changed.save_pretrained(tmp_path / str(size))
        loaded = minislice.load(tmp_path / str(size))[0]
        assert torch.equal(logits(loaded, tokens), after)
    loaded.set_input_embeddings(nn.Embedding(*loaded.get_input_embeddings().weight.shape))
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == (head != "own")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_embeddings_are_generated_from(family):
    model, tokens = sliced(FamilyRecipe(family))
    model, prompt = SlicedForCausalLM.wrap(model), tokens[:1, :6]
    found = model.generate(inputs_embeds=model.get_input_embeddings()(prompt), **OPTIONS)
    assert torch.equal(found, model.generate(prompt, **OPTIONS)[:, 6:])


@pytest.mark.parametrize(
    ("family", "method"),
    [("llama", "PromptTuningConfig"), ("gpt2", "PrefixTuningConfig"), ("mixtral", "PromptTuningConfig")],
)
def test_pefts_prompts_have_the_width_of_the_embedding(family, method):
    peft = pytest.importorskip("peft")
    model, tokens = sliced(FamilyRecipe(family), head="own")
    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    prompted = peft.get_peft_model(SlicedForCausalLM.wrap(model), config)
    assert prompted(input_ids=tokens[:1, :5]).logits.shape[1] == 5 + 3 * (method == "PromptTuningConfig")


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_trainer_saves_beside_its_checkpoints_and_the_script_runs_again(wrapped, tmp_path):
    for _ in range(2):
        model, tokens = sliced()
        model = SlicedForCausalLM.wrap(model) if wrapped else model
        arguments = transformers.TrainingArguments(tmp_path, max_steps=2, save_steps=1, report_to=[], use_cpu=True)
        data = [{"input_ids": row, "labels": row} for row in tokens]
        trainer = transformers.Trainer(model, arguments, train_dataset=data)
        trainer.train()
        trainer.save_model()
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), logits(model, tokens))
    assert (tmp_path / "checkpoint-2").is_dir()


# What travels along


def test_tokenizer_notes_and_config_travel_and_the_names_of_this_machine_do_not(tmp_path):
    private = tmp_path / "private" / "dense"
    Recipe("llama").model().float().save_pretrained(private)
    model, _ = minislice.load(private)
    minislice.slice_model(model, Recipe("llama").tokens(), width=12, adapter="none")
    model = SlicedForCausalLM.wrap(model)
    model.config.base.rms_norm_eps, model.config.eos_token_id = 0.5, 7
    words, notes = minislice.load("mini-opt")[1], {"calibration": "a | b", "perplexity": 12.3456789}
    minislice.save(model, tmp_path / "model", tokenizer=words, notes=notes)
    loaded, tokenizer = minislice.load(tmp_path / "model")
    assert tokenizer("def f(x):")["input_ids"] == words("def f(x):")["input_ids"]
    assert loaded.base.config.rms_norm_eps == 0.5 and loaded.config.eos_token_id == 7
    assert loaded.config.slicing["perplexity"] == 12.3456789 and loaded.config.slicing["options"]["adapter"] == "none"
    card = (tmp_path / "model" / "README.md").read_text()
    size = f"| parameters | {loaded.num_parameters():,} |"
    for line in ("dense", "| calibration | a \\| b |", "| perplexity | 12.35 |", "| widths | 12 to 20 of 20 |", size):
        assert line in card, line
    assert "private" not in card + (tmp_path / "model" / "config.json").read_text()
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


class OurForCausalLM(transformers.LlamaForCausalLM):
    config_class = OurConfig


def test_what_could_not_be_loaded_again_is_not_saved(tmp_path, monkeypatch):
    config, tokens = Recipe("llama").model().config.to_dict() | {"model_type": "ours"}, Recipe("llama").tokens()
    monkeypatch.setitem(families.FAMILIES, "ours", families.FAMILIES["llama"])
    model = minislice.slice_model(OurForCausalLM(OurConfig(**config)).double(), tokens, width=8)
    with pytest.raises(ValueError, match=r"AutoConfig.register\('ours', OurConfig\)"):
        model.save_pretrained(tmp_path / "model")
    transformers.AutoConfig.register("ours", OurConfig)
    AutoModelForCausalLM.register(OurConfig, OurForCausalLM)
    blocks = families.FAMILIES["llama"].blocks
    by_layer = replace(families.FAMILIES["llama"], blocks=lambda config, layer: blocks[:: 1 - 2 * layer])
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="a function for `blocks`"):
        patch.setitem(families.FAMILIES, "ours", by_layer)
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="isn't sliced"):
        minislice.save(Recipe("opt").model(), tmp_path / "model")
    assert not (tmp_path / "model").exists()
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(minislice.load(tmp_path / "model")[0], tokens), logits(model, tokens))


# Whole or not at all, and nothing of anybody else


def test_until_the_last_file_is_written_there_is_no_new_folder_and_the_old_one_is_whole(tmp_path, monkeypatch):
    """A process that is killed leaves the disk as it is at that moment; one that fails leaves nothing new."""
    model, _ = sliced("opt")
    model.save_pretrained(tmp_path / "model")
    before, found = snapshot(tmp_path), []

    def fail(*arguments):  # in place of the model card, which is written last
        found.extend(files_of(tmp_path) - {"model"})
        assert before.items() <= snapshot(tmp_path).items()
        raise ZeroDivisionError

    monkeypatch.setattr(modeling, "model_card", fail)
    for name in ("model", "new"):
        with pytest.raises(ZeroDivisionError):
            model.save_pretrained(tmp_path / name, force=True)
    assert snapshot(tmp_path) == before
    assert [name.rpartition("-")[0] for name in found] == [".model.partial", ".new.partial"]


def test_saving_again_replaces_the_weights_and_all_of_the_folder_only_with_force(tmp_path):
    model, tokens = sliced()
    for name in ("notes.txt", "README.md"):
        (tmp_path / name).write_text("mine")
    for settings in ({}, {"max_shard_size": "5KB"}, {}, {"max_shard_size": "9KB"}):
        model.save_pretrained(tmp_path, **settings)
        assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens), logits(model, tokens))
        assert len({*tmp_path.glob("model*")} & {tmp_path / "model.safetensors"}) == (not settings)
    before = snapshot(tmp_path)
    for action in (lambda: model.save_pretrained(tmp_path, force=False), lambda: minislice.save(model, tmp_path)):
        with pytest.raises(ValueError, match="force"):
            action()
    assert snapshot(tmp_path) == before and before["notes.txt"] == before["README.md"] == b"mine"
    model.save_pretrained(tmp_path, force=True)
    assert "notes.txt" not in files_of(tmp_path)


@pytest.mark.parametrize("name", ["heads.py", "config.json", "model.safetensors"])
def test_files_that_no_saved_model_has_are_not_overwritten(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=f"files that aren't a saved model's: {name}"):
        sliced()[0].save_pretrained(tmp_path)
    assert files_of(tmp_path) == {name}


# One clear error each, naming the file or the folder


def config(**changes):
    def damage(folder: Path) -> None:
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**fields, **changes}))

    return damage


def last_file(change):
    return lambda folder: change(sorted(folder.glob("*.safetensors"))[-1])


def tensors(change):
    return last_file(lambda path: edit(path, change))


LAST_SHARD = r"model-\d+-of-\d+\.safetensors"
DAMAGES = [
    (last_file(lambda path: path.write_bytes(path.read_bytes()[:-5])), LAST_SHARD + ".* cut off"),
    (last_file(Path.unlink), f"{LAST_SHARD}', which isn't in the same folder"),
    (tensors(lambda t: t.update({next(iter(t)): torch.zeros(3, 5)})), LAST_SHARD + r".*\[3, 5\]"),
    (tensors(lambda t: t.pop(next(iter(t)))), "1 tensors are missing"),
    (tensors(lambda t: t.update(stray=torch.zeros(2))), LAST_SHARD + ".*unexpected.*stray"),
    (config(format_version=4), r"config\.json.*newer minislice \(format 4"),
    (config(model_type="nonesuch", auto_map={}), r"config\.json.*nonesuch"),
    (config(widths=[12, 12, 12, 12, 21]), r"config\.json.*'widths'.*20"),
    (config(widths=[12, 12, 12, True, 20]), r"config\.json.*'widths' must lie between 1 and"),
    (config(adapters=["full", "full", "full", 13]), r"config\.json.*'adapters' has 13 for block 3"),
    (config(norm_eps=[]), r"config\.json.*'norm_eps'"),
    (config(head="shared"), r"config\.json.*'head'"),
    (config(base=None), r"config\.json.*`base`"),
    (config(widths=[11, 12, 12, 12, 20]), r"safetensors.*\[120, 12\]"),
    (config(neurons=[8]), r"'neurons' must be a list of 2 numbers, .* which are \[40, 40\]; got"),
    (config(neurons=[8, 41]), "'neurons' must be a list of 2 numbers"),
    (config(dropped=[4]), "'dropped' must be a list of blocks, each once, .* 0 to 3; got"),
    (config(dropped=[1, 1]), "'dropped' must be a list of blocks, each once"),
    (config(dropped=[1]), "a model of 3 blocks needs 4 entries in 'widths', got 5"),
    (config(dropped=[0], widths=[12] * 3 + [20], adapters=["full"] * 3, norm_eps=[1e-5] * 4), "block 0 can't be dropp"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGES)
def test_a_damaged_folder_gives_one_error_that_names_it(change, message, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # the annotations, which only tests check
    model, _ = sliced("llama", width=12, adapter="full", head="own")
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="8KB")
    change(folder)
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        minislice.load(folder)
    assert str(folder) in str(error.value)


def test_transformers_own_loader_refuses_damage_too(tmp_path):
    sliced("phi")[0].save_pretrained(tmp_path / "model")
    for damage, message in ((tensors(lambda t: t.pop(next(iter(t)))), "are missing"), (config(dropped=[4]), "dropped")):
        damage(tmp_path / "model")
        with pytest.raises(ValueError, match=message):
            AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_a_dense_model_is_loaded_as_it_is_or_refused_where_a_tensor_is_missing(tmp_path):
    model = Recipe("llama", tied=False).model()
    model.save_pretrained(tmp_path / "model")
    loaded, words = minislice.load(tmp_path / "model", dtype=torch.bfloat16, device="cpu")
    assert words is None and not loaded.training and loaded.dtype == torch.bfloat16 and type(loaded) is type(model)
    tensors(lambda t: t.pop("lm_head.weight"))(tmp_path / "model")
    with pytest.raises(ValueError, match="model: 1 tensors are missing, such as lm_head"):
        minislice.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./absent", "no such folder"),
        (Path("absent"), "no such folder"),
        ("absent-model", "no folder here, none of the embedded models"),
        (Path(__file__).parent, "config.json doesn't exist"),
        (Path(__file__), "is a file"),
    ],
)
def test_what_is_no_model_is_said_to_be_none(name, message):
    with pytest.raises(ValueError, match=message):
        minislice.load(name)


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("minislice.storage.checkpoint.PreTrainedConfig", None)  # nothing of transformers' is asked
    with pytest.raises(ValueError, match=r"'absent/model'.*127\.0\.0\.1:9 can't be reached.*folder.*HF_HUB_OFFLINE=1"):
        minislice.load("absent/model")
