"""A sliced model on disk is the sliced model: every bit of its logits, and everything a Hugging Face model can do."""

import copy
import json
import logging
import pickle
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from models import FAMILIES, VOCABULARY, Recipe
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import minislice
from minislice.architecture.blocks import LowRankAdapter
from minislice.architecture.heads import FittedHead
from minislice.architecture.modeling import CACHE, SlicedForCausalLM
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


def sliced(family, *, dtype=torch.float32, seed=0, width=12, tied_head=False, **options):
    """A random model, sliced in place, and tokens. Only parameters change dtype, as in `from_pretrained`."""
    recipe = Recipe(family, seed=seed)
    model, tokens = recipe.model(), recipe.tokens()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    minislice.slice_model(model, tokens, width=width, **({"head": "own"} if tied_head else {}), **options)
    if tied_head:
        net = network(model)
        H = torch.randn(net.widths[-1], width, generator=torch.Generator().manual_seed(seed)).to(dtype)
        model.lm_head = FittedHead(net.embeddings[0], H, model.lm_head.bias)
    return model, tokens


@torch.no_grad()
def logits(model, tokens):
    return model(input_ids=tokens).logits


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- the same function, the same size ----


@pytest.mark.parametrize(("family", "dtype", "form", "slice_head"), PAIRWISE)
def test_loaded_logits_are_bit_identical(family, dtype, form, slice_head, tmp_path):
    model, tokens = sliced(family, dtype=dtype, adapter=form, slice_head=slice_head)
    before = logits(model, tokens)
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(model, tokens), before)  # saving changed nothing
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(loaded) is SlicedForCausalLM and loaded.dtype == dtype and not loaded.training
    assert torch.equal(logits(loaded, tokens), before)
    assert [type(block.adapter) for block in network(loaded).blocks] == [
        type(block.adapter) for block in network(model).blocks
    ]
    assert loaded.num_parameters() == minislice.parameters(loaded) == minislice.parameters(model)
    head = ("linear", "own") if slice_head else ("tied", "tied")  # nobody said what becomes of it
    assert (loaded.config.head, loaded.config.slicing["options"]["head"]) == head
    path = tmp_path / "model" / "model.safetensors"  # which has the parameters and nothing else
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == header + dtype.itemsize * minislice.parameters(model)
    assert not [name for name in files_of(path.parent) if name.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.parametrize(
    ("family", "prepare"),
    [("opt", minislice.fuse), ("llama", minislice.rotate), ("phi", lambda m: minislice.rotate(m, per_block=True))],
)
def test_a_fused_or_rotated_model_survives_saving(family, prepare, tmp_path):
    recipe = Recipe(family)
    model, tokens = prepare(recipe.model()), recipe.tokens()
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tokens), logits(model, tokens))


def test_the_norms_eps_comes_from_the_module(tmp_path):
    recipe = Recipe("opt", eps=0.5)  # OPT's config has no eps
    model, tokens = minislice.fuse(recipe.model()), recipe.tokens()
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tokens), logits(model, tokens))


@pytest.mark.parametrize(("family", "slice_head"), [("opt", True), ("llama", False), ("phi", True)])
def test_a_tied_head_is_stored_once_and_tied_again(family, slice_head, tmp_path):
    model, tokens = sliced(family, tied_head=True, slice_head=slice_head)
    model.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert sum(tensor.shape == (VOCABULARY, 12) for tensor in stored.values()) == 1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    (tied,) = loaded.all_tied_weights_keys.items()  # what transformers ties after loading, and keeps on one device
    assert [loaded.get_parameter(name) is loaded.get_input_embeddings().weight for name in tied] == [True, True]
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    assert loaded.num_parameters() == minislice.parameters(model) == sum(t.numel() for t in stored.values())


def test_a_large_model_is_sharded_and_loads_from_its_shards(tmp_path):
    model, tokens = sliced("llama")
    model.save_pretrained(tmp_path / "model", max_shard_size="8KB")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 2 and not (tmp_path / "model" / "model.safetensors").exists()
    assert torch.equal(logits(minislice.load(tmp_path / "model")[0], tokens), logits(model, tokens))


def test_a_loaded_model_is_saved_and_loaded_again_unchanged(tmp_path):
    model, tokens = sliced("phi", adapter="low-rank")
    model.save_pretrained(tmp_path / "first")
    loaded, _ = minislice.load(tmp_path / "first")
    loaded.save_pretrained(tmp_path / "second")
    assert torch.equal(logits(minislice.load(tmp_path / "second")[0], tokens), logits(model, tokens))
    for name in ("config.json", "README.md", "model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_saves_itself_and_not_the_original(copied, tmp_path):
    model, tokens = sliced("opt")
    other = copied(model)
    with torch.no_grad():
        other.lm_head.weight.add_(1.0)
    other.save_pretrained(tmp_path / "copy")
    model.save_pretrained(tmp_path / "original")
    assert torch.equal(logits(minislice.load(tmp_path / "copy")[0], tokens), logits(other, tokens))
    assert torch.equal(logits(minislice.load(tmp_path / "original")[0], tokens), logits(model, tokens))


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


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_it_generates_as_the_model_that_was_saved(saved, how):
    model, tokens, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.generation_config.max_new_tokens == 7
    outputs = []
    for each, cached in ((model, True), (loaded, True), (loaded, False)):
        torch.manual_seed(0)
        outputs.append(each.generate(tokens[:2, :5], **{**OPTIONS, **how}, use_cache=cached))
    assert outputs[0].shape == (2, 11)
    assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_has_both_of_its_names_and_neither_is_deprecated(name, saved, monkeypatch):
    model, tokens, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder)

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


def test_padding_on_the_left_does_not_change_what_it_generates(saved):
    _, tokens, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    alone = loaded.generate(tokens[:1, :5], **OPTIONS)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens[:1, :5]], dim=1)
    mask = (torch.arange(8) >= 3)[None].long()
    assert torch.equal(loaded.generate(padded, attention_mask=mask, **OPTIONS)[:, 3:], alone)


@pytest.mark.parametrize(("name", "dtype"), [*zip(["dtype", "torch_dtype", "dtype"], DTYPES, strict=True)])
def test_every_parameter_takes_the_dtype_asked_for(saved, name, dtype):
    _, tokens, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder, **{name: dtype})
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert logits(loaded, tokens).dtype == dtype


def test_device_map_auto_places_it_without_changing_it(saved):
    model, tokens, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map="auto")
    assert torch.equal(logits(loaded, tokens.to(loaded.device)).cpu(), logits(model, tokens))


@pytest.mark.parametrize(
    ("family", "head", "share"),
    [
        ("opt", "own", 0.86),
        ("llama", "own", 0.86),
        ("phi", "tied", 0.86),
        ("opt", "fitted", 0.1),
        ("llama", "tied", 0.1),
    ],
)
def test_spread_over_devices_it_computes_the_same(family, head, share, tmp_path):
    model, tokens = sliced(family, head=head)
    model.save_pretrained(tmp_path / "model")
    settings = {"max_memory": {"cpu": int(share * 4 * minislice.parameters(model))}, "offload_folder": tmp_path / "off"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map="auto", **settings)
    assert "disk" in loaded.hf_device_map.values()
    assert not [name for name in loaded.hf_device_map if ".blocks" in name]  # a layer is never split
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


def test_the_attention_asked_for_is_the_attention_used(saved):
    _, tokens, folder = saved
    eager = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    sdpa = AutoModelForCausalLM.from_pretrained(folder)
    attention = network(eager).blocks[0].attention
    assert attention.config._attn_implementation == "eager"
    assert network(sdpa).blocks[0].attention.config._attn_implementation == "sdpa"
    assert eager(input_ids=tokens, output_attentions=True).attentions[0].shape[-2:] == (30, 30)
    torch.testing.assert_close(logits(eager, tokens), logits(sdpa, tokens), rtol=1e-4, atol=1e-4)
    eager.set_attn_implementation("sdpa")
    assert attention.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("family", "form"), [*zip(FAMILIES, FORMS, strict=True)])
def test_gradients_reach_every_weight_with_and_without_checkpointing(family, form, tmp_path):
    model, tokens = sliced(family, adapter=form, tied_head=form == "none")
    model.save_pretrained(tmp_path / "model")
    gradients = []
    for checkpointing in (False, True):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").train()
        if hasattr(loaded.config.base, "dropout"):
            for block in network(loaded).blocks:
                block.dropout.p = 0.0  # OPT's default isn't zero
        if checkpointing:
            getattr(loaded, "activation_checkpointing_enable", loaded.gradient_checkpointing_enable)()  # its old name
        loaded(input_ids=tokens, labels=tokens).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in loaded.named_parameters()})
    # A key's bias shifts every score of a row alike, and softmax takes no notice: there it is rounding.
    silent = [n for n, g in gradients[0].items() if g is None or (not g.any() and not n.endswith("k_proj.bias"))]
    assert len(gradients[0]) > 10 and not silent
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_labels_give_the_mean_loss_of_the_predicted_tokens(saved):
    _, tokens, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    expected = nn.functional.cross_entropy(logits(loaded, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(loaded(input_ids=tokens, labels=tokens).loss, expected)
    as_tuple = loaded(input_ids=tokens, labels=tokens, return_dict=False)
    torch.testing.assert_close(as_tuple[0], expected)


def test_hidden_states_are_what_each_layer_reads(saved):
    model, tokens, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    states = loaded(input_ids=tokens, output_hidden_states=True).hidden_states
    net = network(loaded)
    firsts = [0, *range(len(net.layers[0].blocks), len(net.blocks), len(net.layers[0].blocks))]
    assert [state.shape[-1] for state in states] == [net.widths[index] for index in firsts] + [net.widths[-1]]
    assert torch.equal(net.head(states[-1]), logits(model, tokens))
    assert logits(loaded, tokens).shape and loaded(input_ids=tokens).hidden_states is None


def test_embeddings_can_be_read_and_replaced(saved):
    _, tokens, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.get_input_embeddings() is network(loaded).embeddings[0]
    assert loaded.get_output_embeddings() is network(loaded).head
    tied, before = loaded.config.head == "tied", logits(loaded, tokens)
    loaded.resize_token_embeddings(VOCABULARY + 8)
    assert logits(loaded, tokens + 5).shape[-1] == loaded.config.vocab_size == VOCABULARY + 8
    torch.testing.assert_close(logits(loaded, tokens)[..., :VOCABULARY], before)
    assert (loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight) == tied


def test_a_replaced_embedding_stays_tied(tmp_path):
    model, _ = sliced("opt", tied_head=True)
    wrapped = SlicedForCausalLM.wrap(model)
    new = nn.Embedding(VOCABULARY, 12)
    wrapped.set_input_embeddings(new)
    assert wrapped.get_input_embeddings() is new and wrapped.get_output_embeddings().weight is new.weight


def test_minislice_measures_a_loaded_model_and_refuses_to_slice_it_again(saved):
    model, tokens, folder = saved
    loaded, _ = minislice.load(folder)
    assert minislice.perplexity(loaded, tokens) == minislice.perplexity(model, tokens)
    for action in (minislice.rotate, lambda m: minislice.slice_model(m, tokens), minislice.fuse):
        with pytest.raises(ValueError, match="already"):
            action(loaded)


def test_what_is_sliced_after_loading_is_saved_as_it_is(tmp_path):
    recipe = Recipe("llama")
    tokens = recipe.tokens()
    minislice.fuse(recipe.model()).save_pretrained(tmp_path / "fused")
    loaded, _ = minislice.load(tmp_path / "fused")
    minislice.slice_model(loaded, tokens, width=9, slice_head=True)
    loaded.save_pretrained(tmp_path / "sliced")
    again, _ = minislice.load(tmp_path / "sliced")
    assert set(again.config.widths) == {9} and again.config.slicing["options"]["width"] == 9
    assert torch.equal(logits(again, tokens), logits(loaded, tokens))


@pytest.mark.parametrize("tied", [False, True])
def test_a_loaded_model_remembers_whether_its_head_was_tied(tied, tmp_path):
    recipe = Recipe("opt", tied=tied)
    minislice.fuse(recipe.model()).save_pretrained(tmp_path / "fused")
    loaded, _ = minislice.load(tmp_path / "fused")
    if not tied:
        with pytest.raises(ValueError, match="shares the embedding"):
            minislice.slice_model(loaded, recipe.tokens(), width=9, head="fitted")
        return
    minislice.slice_model(loaded, recipe.tokens(), width=9, head="fitted")
    loaded.save_pretrained(tmp_path / "sliced")
    again, _ = minislice.load(tmp_path / "sliced")
    assert isinstance(again.get_output_embeddings(), FittedHead)
    assert torch.equal(logits(again, recipe.tokens()), logits(loaded, recipe.tokens()))


def test_it_loads_by_trust_remote_code_where_minislice_is_missing(tmp_path):
    folders = []
    for family, options in (("opt", {"tied_head": True}), ("llama", {"adapter": "low-rank"}), ("phi", {})):
        model, tokens = sliced(family, **options)
        folders.append(str(tmp_path / family))
        model.save_pretrained(folders[-1])
        torch.save({"tokens": tokens, "logits": logits(model, tokens)}, tmp_path / f"{family}.pt")
    script = """
        import sys
        sys.modules["minislice"] = None  # importing it fails, installed or not
        import torch
        from transformers import AutoModelForCausalLM
        for folder in sys.argv[1:]:
            expected = torch.load(folder + ".pt")
            for again in ("", "-again"):
                model = AutoModelForCausalLM.from_pretrained(folder + again, trust_remote_code=True)
                assert type(model).__module__.startswith("transformers_modules"), type(model)
                with torch.no_grad():
                    assert torch.equal(model(input_ids=expected["tokens"]).logits, expected["logits"])
                assert model.generate(expected["tokens"][:1, :4], max_new_tokens=3, do_sample=False).shape == (1, 7)
                if not again:
                    model.save_pretrained(folder + "-again")
        print("loaded", len(sys.argv) - 1)
    """
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    result = run_python(script, *folders, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["loaded", "3"]


def run_python(script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)


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
    said = [
        "base_model: facebook/opt-125m",
        "| calibration | a \\| b |",
        "| perplexity | 12.35 |",
        "| adapters | full |",  # at both ends, beside the tied head
        "| head | tied |",
    ]
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


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    model, _ = sliced("opt")
    model.save_pretrained(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    monkeypatch.setattr("minislice.architecture.modeling.model_card", lambda *_: 1 / 0)
    for name in ("model", "new"):
        with pytest.raises(ZeroDivisionError):
            model.save_pretrained(tmp_path / name, force=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert files_of(tmp_path) == {"model"}


def test_a_killed_save_leaves_no_folder(tmp_path):
    script = """
        import os, signal, sys
        sys.path[:0] = sys.argv[2:]
        import minislice, minislice.architecture.modeling
        from models import Recipe
        minislice.architecture.modeling.model_card = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the last written
        minislice.fuse(Recipe("llama").model()).save_pretrained(sys.argv[1])
    """
    here = Path(__file__).parent
    result = run_python(script, str(tmp_path / "model"), str(here), str(here.parent), cwd=tmp_path)
    assert result.returncode == -signal.SIGKILL, result.stderr
    left = files_of(tmp_path)
    assert len(left) == 1 and left.pop().startswith(".model.partial-")  # it was interrupted, not refused


def test_a_folder_with_files_is_replaced_only_with_force(tmp_path):
    model, tokens = sliced("opt")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for action in (lambda f: model.save_pretrained(f, force=False), lambda f: minislice.save(model, f)):
        with pytest.raises(ValueError, match="force"):
            action(folder)
    assert files_of(folder) == {"thesis.txt"} and files_of(tmp_path) == {"model"}
    model.save_pretrained(folder, force=True)
    assert "thesis.txt" not in files_of(folder) and files_of(tmp_path) == {"model"}
    assert torch.equal(logits(minislice.load(folder)[0], tokens), logits(model, tokens))


def test_an_empty_folder_is_fine_and_a_file_is_not(tmp_path):
    model, _ = sliced("opt")
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    assert "config.json" in files_of(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        model.save_pretrained(tmp_path / "file", force=True)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_dense_model_is_not_saved_as_a_sliced_one(tmp_path):
    with pytest.raises(ValueError, match="isn't sliced"):
        minislice.save(Recipe("opt").model(), tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- one clear error each, naming the file ----


def edit_config(**changes):
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return damage


def edit_tensors(change):
    def damage(folder: Path) -> None:
        path = sorted(folder.glob("*.safetensors"))[-1]
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def truncate(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[-1]
    path.write_bytes(path.read_bytes()[:-5])


LAST_SHARD = r"model-\d+-of-\d+\.safetensors"
DAMAGES = {
    "truncated": (truncate, LAST_SHARD + ".* cut off"),
    "not safetensors": (lambda f: sorted(f.glob("*.safetensors"))[-1].write_bytes(b"pickle" * 9), LAST_SHARD),
    "missing shard": (lambda f: sorted(f.glob("*.safetensors"))[-1].unlink(), LAST_SHARD + " is missing"),
    "shape": (edit_tensors(lambda t: t.update({next(iter(t)): torch.zeros(3, 5)})), LAST_SHARD + r".*\[3, 5\]"),
    "missing tensor": (edit_tensors(lambda t: t.pop(next(iter(t)))), LAST_SHARD + ".*it isn't there"),
    "unexpected tensor": (edit_tensors(lambda t: t.update(stray=torch.zeros(2))), LAST_SHARD + ".*unexpected.*stray"),
    "index": (lambda f: (f / INDEX).write_text("{"), "index.json is damaged"),
    "config": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "newer": (edit_config(format_version=4), r"config\.json.*newer minislice \(format 4"),
    "other architecture": (edit_config(model_type="nonesuch", auto_map={}), r"config\.json.*nonesuch"),
    "width": (edit_config(widths=[12, 12, 12, 12, 21]), r"config\.json.*'widths'.*20"),
    "adapter": (edit_config(adapters=["full", "full", "full", 13]), r"config\.json.*'adapters' has 13 for block 3"),
    "norms": (edit_config(norm_eps=[]), r"config\.json.*'norm_eps'"),
    "head": (edit_config(head="shared"), r"config\.json.*'head'"),
    "no base": (edit_config(base=None), r"config\.json.*`base`"),
    "width that the tensors don't have": (edit_config(widths=[11, 12, 12, 12, 20]), r"safetensors.*\[120, 12\]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_gives_one_error_that_names_the_file(damage, tmp_path):
    model, _ = sliced("llama", adapter="full", head="own")
    folder = tmp_path / "model"
    model.save_pretrained(folder, max_shard_size="8KB")
    minislice.load(folder)
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        minislice.load(folder)
    assert str(folder) in str(error.value)


NEURONS = [[8], [8, 41], [8, True], "88"]
DROPPED = [[4], [1, 1], [1.0], "1"]
SIZES = {
    r"'neurons' must be a list of 2 numbers, .* the dense model's, which are \[40, 40\]; got": ("neurons", NEURONS),
    "'dropped' must be a list of blocks, each once, of the 4 .*, 0 to 3; got": ("dropped", DROPPED),
    "a model of 3 blocks needs 4 entries in 'widths', got 5": ("dropped", [[1]]),
    "'widths' must lie between 1 and the hidden size 20, got": (
        "widths",
        [[12, 12, 12, bad, 20] for bad in (True, "9")],
    ),
}


@pytest.mark.parametrize("load", [minislice.load, AutoModelForCausalLM.from_pretrained])
@pytest.mark.parametrize(
    ("message", "name", "value"), [(said, name, value) for said, (name, values) in SIZES.items() for value in values]
)
def test_sizes_that_no_model_has_are_refused_in_one_error(message, name, value, load, tmp_path, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # the annotations, which only tests check
    sliced("llama")[0].save_pretrained(tmp_path / "model")
    edit_config(**{name: value})(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "model")
    assert load is not minislice.load or str(tmp_path / "model" / "config.json") in str(error.value)


def test_a_folder_without_the_block_that_a_cache_is_measured_by_is_refused(tmp_path):
    sliced("llama", drop=[1])[0].save_pretrained(tmp_path / "model")
    edit_config(dropped=[0])(tmp_path / "model")
    with pytest.raises(ValueError, match=r"config\.json: block 0 can't be dropped: it has the attention"):
        minislice.load(tmp_path / "model")


def test_transformers_own_loader_refuses_a_missing_tensor(tmp_path):
    sliced("phi")[0].save_pretrained(tmp_path / "model")
    edit_tensors(lambda tensors: tensors.pop(next(iter(tensors))))(tmp_path / "model")
    with pytest.raises(ValueError, match="1 tensors are missing"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_a_damaged_dense_folder_gives_the_same_errors(tmp_path):
    Recipe("llama", tied=False).model().save_pretrained(tmp_path / "model")
    minislice.load(tmp_path / "model")
    edit_tensors(lambda tensors: tensors.pop("lm_head.weight"))(tmp_path / "model")
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


def test_load_returns_a_dense_model_in_eval_mode_without_a_tokenizer_where_there_is_none(tmp_path):
    recipe = Recipe("phi")
    model = recipe.model().float()
    model.save_pretrained(tmp_path / "model")
    loaded, words = minislice.load(tmp_path / "model", dtype=torch.bfloat16, device="cpu")
    assert words is None and not loaded.training and loaded.dtype == torch.bfloat16
    assert type(loaded) is type(model)


def test_the_low_rank_adapter_keeps_its_rank_and_padding(tmp_path):
    model, _ = sliced("llama", adapter="none", head="own")  # the last boundary is whole: padding
    model.save_pretrained(tmp_path / "model")
    loaded, _ = minislice.load(tmp_path / "model")
    last = network(loaded).blocks[-1].adapter
    assert isinstance(last, LowRankAdapter) and (last.rank, last.padding) == (0, 8)
    assert loaded.config.adapters == [None, None, None, 0]
