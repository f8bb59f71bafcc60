"""A sliced model on disk is the sliced model: every bit of its logits, and everything a Hugging Face model can do."""

import copy
import json
import logging
import pickle
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from models import FAMILIES, VOCABULARY, Recipe
from safetensors.torch import load_file
from streamed import edit, snapshot
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import minislice
from minislice.architecture import modeling
from minislice.architecture.heads import FittedHead
from minislice.architecture.modeling import CACHE, SlicedForCausalLM, form_of
from minislice.architecture.network import network
from minislice.measuring.cost import step_seconds
from minislice.storage.files import INDEX

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = ("full", "low-rank", "none")
# Every family with every dtype and every form, each pair of them once
PAIRWISE = [
    (family, dtype, FORMS[(f + d) % 3], f == d) for f, family in enumerate(FAMILIES) for d, dtype in enumerate(DTYPES)
]
OPTIONS = {"do_sample": False, "max_new_tokens": 6}


def sliced(family, *, dtype=torch.float32, seed=0, **options):
    """A random model, sliced in place, and tokens. Only parameters change dtype, as in `from_pretrained`."""
    recipe = Recipe(family, seed=seed)
    model, tokens = recipe.model(), recipe.tokens()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return minislice.slice_model(model, tokens, **{"width": 12, **options}), tokens


@torch.no_grad()
def logits(model, tokens):
    return model(input_ids=tokens).logits


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- the same function, the same size ----


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


@pytest.mark.parametrize(("family", "dtype", "form", "slice_head"), PAIRWISE)
def test_a_loaded_model_is_the_saved_one(family, dtype, form, slice_head, tmp_path):
    model, tokens = sliced(family, dtype=dtype, adapter=form, slice_head=slice_head)
    loaded = saved_equals_loaded(model, tokens, tmp_path / "model")
    head = ("linear", "own") if slice_head else ("tied", "tied")  # nobody said what becomes of it
    assert (loaded.config.head, loaded.config.slicing["options"]["head"]) == head


EPS_OF_A_MODULE = Recipe("opt", eps=0.5)  # OPT's config has no eps
WHOLE = [
    (EPS_OF_A_MODULE, minislice.fuse),
    (Recipe("llama"), minislice.rotate),
    (Recipe("phi"), partial(minislice.rotate, per_block=True)),
]


@pytest.mark.parametrize(("recipe", "prepare"), WHOLE)
def test_a_fused_or_rotated_model_survives_saving(recipe, prepare, tmp_path):
    saved_equals_loaded(prepare(recipe.model()), recipe.tokens(), tmp_path / "model")


MISTAKES = {
    "eps of the config": ("description", lambda right: lambda model: right(model) | {"norm_eps": [1e-5] * 5}),
    "norms of the new width": ("RMSNorm", lambda right: lambda D, eps: right(D // 2, eps)),
    "a head that isn't tied": ("_tied", lambda right: lambda base: None),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_saving_fails_on(mistake, tmp_path, monkeypatch):
    model, tokens = minislice.fuse(EPS_OF_A_MODULE.model(), keep_tie=True), EPS_OF_A_MODULE.tokens()
    saved_equals_loaded(model, tokens, tmp_path / "right")
    name, wrong = MISTAKES[mistake]
    monkeypatch.setattr(modeling, name, wrong(getattr(modeling, name)))
    with pytest.raises((AssertionError, ValueError), match=r"logits differ|1 tensors are missing"):
        saved_equals_loaded(model, tokens, tmp_path / "wrong")


@pytest.mark.parametrize(("family", "slice_head"), [("opt", True), ("llama", False)])
def test_a_tied_head_is_stored_once_and_tied_again(family, slice_head, tmp_path):
    model, tokens = sliced(family, head="fitted", slice_head=slice_head)
    loaded = saved_equals_loaded(model, tokens, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    embedding = loaded.get_input_embeddings().weight
    assert sum(tensor.shape == embedding.shape for tensor in stored.values()) == 1
    (tied,) = loaded.all_tied_weights_keys.items()  # what transformers ties after loading, and keeps on one device
    assert all(loaded.get_parameter(name) is embedding for name in tied)
    assert loaded.get_output_embeddings().weight is embedding


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
def test_a_copy_saves_itself_and_not_the_original(copied, tmp_path):
    model, tokens = sliced("opt")
    other = copied(model)
    with torch.no_grad():
        other.lm_head.weight.add_(1.0)
    for name, each in {"copy": other, "original": model}.items():
        each.save_pretrained(tmp_path / name)
        assert torch.equal(logits(minislice.load(tmp_path / name)[0], tokens), logits(each, tokens))


def test_a_given_state_dict_is_what_is_saved(tmp_path):
    model, tokens = sliced("llama")
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = logits(model, tokens)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(tmp_path / "model", state_dict=weights)  # as transformers' Trainer does
    assert torch.equal(logits(minislice.load(tmp_path / "model")[0], tokens), before)


# ---- what a Hugging Face model can do ----


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


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_it_generates_as_the_model_that_was_saved(saved, loaded, how):
    model, tokens, _ = saved
    assert loaded.generation_config.max_new_tokens == 7
    outputs = []
    for each, cached in ((model, True), (loaded, True), (loaded, False)):
        torch.manual_seed(0)
        outputs.append(each.generate(tokens[:2, :5], **{**OPTIONS, **how}, use_cache=cached))
    assert outputs[0].shape == (2, 11)
    assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])


def test_padding_on_the_left_does_not_change_what_it_generates(saved, loaded):
    tokens = saved[1][:1, :5]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens], dim=1)
    mask = (torch.arange(8) >= 3)[None].long()
    generated = loaded.generate(padded, attention_mask=mask, **OPTIONS)
    assert torch.equal(generated[:, 3:], loaded.generate(tokens, **OPTIONS))


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
        step_seconds(model, length=2)
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
    config = network(eager).blocks[0].attention.config
    assert config._attn_implementation == "eager"
    assert network(loaded).blocks[0].attention.config._attn_implementation == "sdpa"
    assert eager(input_ids=tokens, output_attentions=True).attentions[0].shape[-2:] == (30, 30)
    torch.testing.assert_close(logits(eager, tokens), logits(loaded, tokens), rtol=1e-4, atol=1e-4)
    eager.set_attn_implementation("sdpa")
    assert config._attn_implementation == "sdpa"


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


def test_embeddings_can_be_read_and_replaced(saved, loaded):
    tokens = saved[1]
    assert loaded.get_input_embeddings() is network(loaded).embeddings[0]
    assert loaded.get_output_embeddings() is network(loaded).head
    tied, before = loaded.config.head == "tied", logits(loaded, tokens)
    loaded.resize_token_embeddings(VOCABULARY + 8)
    assert logits(loaded, tokens + 5).shape[-1] == loaded.config.vocab_size == VOCABULARY + 8
    torch.testing.assert_close(logits(loaded, tokens)[..., :VOCABULARY], before)
    loaded.set_input_embeddings(nn.Embedding(*loaded.get_input_embeddings().weight.shape))
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


def test_minislice_measures_a_loaded_model_and_refuses_to_slice_it_again(saved, loaded):
    model, tokens, _ = saved
    assert minislice.perplexity(loaded, tokens) == minislice.perplexity(model, tokens)
    for action in (minislice.rotate, lambda m: minislice.slice_model(m, tokens), minislice.fuse):
        with pytest.raises(ValueError, match="already"):
            action(loaded)


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
    assert isinstance(loaded.get_output_embeddings(), FittedHead)
    assert set(loaded.config.widths) == {9} and loaded.config.slicing["options"]["width"] == 9


# ---- what travels along ----


def tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    plain = Tokenizer(models.WordLevel({"<unk>": 0, "hello": 1, "world": 2}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")


def test_tokenizer_and_notes_travel(tmp_path):
    model, _ = sliced("opt", adapter="none", seed=3)
    model.config._name_or_path = "facebook/opt-125m"
    notes = {"calibration": "a | b", "perplexity": 12.3456789}
    minislice.save(model, tmp_path / "model", tokenizer=tokenizer(), notes=notes)
    loaded, words = minislice.load(tmp_path / "model")
    assert words("hello world")["input_ids"] == [1, 2]
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("world")["input_ids"] == [2]
    assert loaded.config.slicing["perplexity"] == 12.3456789
    assert loaded.config.slicing["options"]["adapter"] == "none"
    card = (tmp_path / "model" / "README.md").read_text()
    said = ["base_model: facebook/opt-125m", "| calibration | a \\| b |", "| perplexity | 12.35 |", "| head | tied |"]
    said += ["| adapters | full |"]  # at both ends, beside the tied head
    said += ["| option `seed` | 0 |", "| widths | 12 to 16 of 16 |", f"| parameters | {loaded.num_parameters():,} |"]
    said += [f"torch {torch.__version__}", "AutoModelForCausalLM.from_pretrained"]
    assert [line for line in said if line not in card] == []


def test_a_folder_of_this_machine_is_not_given_away(tmp_path):
    private = tmp_path / "private" / "dense"
    Recipe("llama").model().float().save_pretrained(private)
    model, _ = minislice.load(private)
    minislice.slice_model(model, Recipe("llama").tokens(), width=12)
    model.save_pretrained(tmp_path / "model")
    for name in ("config.json", "README.md"):
        text = (tmp_path / "model" / name).read_text()
        assert "dense" in text and "private" not in text


# ---- whole or not at all ----


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


def test_a_folder_with_files_is_replaced_only_with_force(tmp_path):
    model, tokens = sliced("opt")
    folder = tmp_path / "model"
    folder.mkdir()
    model.save_pretrained(folder)  # an empty one
    (folder / "thesis.txt").write_text("mine")
    before = snapshot(tmp_path)
    for action in (lambda f: model.save_pretrained(f, force=False), lambda f: minislice.save(model, f)):
        with pytest.raises(ValueError, match="force"):
            action(folder)
    with pytest.raises(ValueError, match="is a file"):
        model.save_pretrained(folder / "thesis.txt", force=True)
    assert snapshot(tmp_path) == before
    model.save_pretrained(folder, force=True)
    assert "thesis.txt" not in files_of(folder) and files_of(tmp_path) == {"model"}
    assert torch.equal(logits(minislice.load(folder)[0], tokens), logits(model, tokens))


def test_a_dense_model_is_not_saved_as_a_sliced_one(tmp_path):
    with pytest.raises(ValueError, match="isn't sliced"):
        minislice.save(Recipe("opt").model(), tmp_path / "model")
    assert files_of(tmp_path) == set()


# ---- one clear error each, naming the file or the folder ----


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
DAMAGES = {
    "truncated": (last_file(lambda path: path.write_bytes(path.read_bytes()[:-5])), LAST_SHARD + ".* cut off"),
    "missing shard": (last_file(Path.unlink), f"{LAST_SHARD}', which isn't in the same folder"),
    "shape": (tensors(lambda t: t.update({next(iter(t)): torch.zeros(3, 5)})), LAST_SHARD + r".*\[3, 5\]"),
    "missing tensor": (tensors(lambda t: t.pop(next(iter(t)))), "1 tensors are missing"),
    "unexpected tensor": (tensors(lambda t: t.update(stray=torch.zeros(2))), LAST_SHARD + ".*unexpected.*stray"),
    "index": (lambda folder: (folder / INDEX).write_text("{"), "index.json is damaged"),
    "config": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "newer": (config(format_version=4), r"config\.json.*newer minislice \(format 4"),
    "other architecture": (config(model_type="nonesuch", auto_map={}), r"config\.json.*nonesuch"),
    "width": (config(widths=[12, 12, 12, 12, 21]), r"config\.json.*'widths'.*20"),
    "width that is no number": (
        config(widths=[12, 12, 12, True, 20]),
        r"config\.json.*'widths' must lie between 1 and",
    ),
    "adapter": (config(adapters=["full", "full", "full", 13]), r"config\.json.*'adapters' has 13 for block 3"),
    "norms": (config(norm_eps=[]), r"config\.json.*'norm_eps'"),
    "head": (config(head="shared"), r"config\.json.*'head'"),
    "no base": (config(base=None), r"config\.json.*`base`"),
    "width that the tensors don't have": (config(widths=[11, 12, 12, 12, 20]), r"safetensors.*\[120, 12\]"),
    "too few neurons": (config(neurons=[8]), r"'neurons' must be a list of 2 numbers, .* which are \[40, 40\]; got"),
    "too many neurons": (config(neurons=[8, 41]), "'neurons' must be a list of 2 numbers"),
    "a block that isn't there": (config(dropped=[4]), "'dropped' must be a list of blocks, each once, .* 0 to 3; got"),
    "a block twice": (config(dropped=[1, 1]), "'dropped' must be a list of blocks, each once"),
    "a block too few": (config(dropped=[1]), "a model of 3 blocks needs 4 entries in 'widths', got 5"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_gives_one_error_that_names_it(damage, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # the annotations, which only tests check
    model, _ = sliced("llama", adapter="full", head="own")
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="8KB")
    minislice.load(folder)
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        minislice.load(folder)
    assert str(folder) in str(error.value)


def test_a_folder_without_the_block_that_a_cache_is_measured_by_is_refused(tmp_path):
    sliced("llama", drop=[1])[0].save_pretrained(tmp_path / "model")
    config(dropped=[0])(tmp_path / "model")
    with pytest.raises(ValueError, match=r"model: block 0 can't be dropped: it has the attention"):
        minislice.load(tmp_path / "model")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(tensors(lambda t: t.pop(next(iter(t)))), "1 tensors are missing"), (config(dropped=[4]), "'dropped' must be a")],
)
def test_transformers_own_loader_refuses_damage_too(damage, message, tmp_path):
    sliced("phi")[0].save_pretrained(tmp_path / "model")
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


def test_what_is_no_model_is_said_to_be_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for name, message in {
        tmp_path / "absent": "no such folder",
        str(tmp_path / "absent"): "no such folder",
        "./absent": "no such folder",
        tmp_path / "empty": "config.json doesn't exist",
        tmp_path / "file": "is a file",
        "absent-model": "no folder here, none of the embedded models",
    }.items():
        with pytest.raises(ValueError, match=message):
            minislice.load(name)


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("minislice.storage.checkpoint.PreTrainedConfig", None)  # nothing of transformers' is asked
    with pytest.raises(ValueError, match=r"'absent/model'.*127\.0\.0\.1:9 can't be reached.*folder.*HF_HUB_OFFLINE=1"):
        minislice.load("absent/model")
