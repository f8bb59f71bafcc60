"""A model's folder that can't be right is refused before its weights are loaded: at once, in one ValueError."""

import json
import shutil
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from family_models import FamilyRecipe
from models import Recipe
from safetensors.torch import load_file, save_file

import minislice
from minislice.architecture.families import FAMILIES
from minislice.architecture.modeling import SlicedForCausalLM
from minislice.large.source import TrainedWeights
from minislice.large.streaming import slice_streamed
from minislice.storage.files import INDEX

LOADERS = {"load": minislice.load, "stream": lambda folder: TrainedWeights(folder, "auto")}
IDS = Recipe("llama").tokens()
WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Models that can be loaded; not to be changed."""
    folder = tmp_path_factory.mktemp("good")
    Recipe("llama").model().float().save_pretrained(folder / "llama")
    Recipe("opt").model().float().save_pretrained(folder / "opt")
    Recipe("llama").model().float().save_pretrained(folder / "shards", max_shard_size="8KB")
    minislice.slice_model(Recipe("llama").model().float(), IDS, width=12).save_pretrained(folder / "sliced")
    for name in ("llama", "opt", "shards", "sliced"):
        minislice.load(folder / name)
    return folder


@pytest.fixture
def damaged(good, tmp_path):
    """A copy of a model's folder, to which something is done."""

    def damaged(name: str, change, copy: str = "model") -> Path:
        folder = shutil.copytree(good / name, tmp_path / copy)
        change(folder)
        return folder

    return damaged


def assert_refused(load, folder, *fragments) -> None:
    """A ValueError with every fragment, in less than five seconds."""
    began = time.perf_counter()
    with pytest.raises(ValueError) as error:
        load(folder)
    assert time.perf_counter() - began < 5
    assert all(str(fragment) in str(error.value) for fragment in fragments), error


# What is done to a folder


def edited(file: str = CONFIG, **changes):
    """Other values in a JSON file; of `base`, the dense config of a sliced model, each by itself."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        base = {"base": values["base"] | changes["base"]} if "base" in changes else {}
        (folder / file).write_text(json.dumps(values | changes | base))

    return damage


def written(file: str, content: str):
    return lambda folder: (folder / file).write_text(content)


def only(file: str, content: str):
    """No other file is left."""
    return lambda folder: [*(path.unlink() for path in folder.iterdir()), written(file, content)(folder)]


def with_tensors(change, save=save_file, file: str = WEIGHTS):
    """Other tensors in the file of weights, or in another kind of file."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        change(tensors)
        save(tensors, folder / file)

    return damage


def first_shard_at(value):
    """Another place for the first tensor of an index; `..`: where transformers would read it, there and whole."""

    def damage(folder: Path) -> None:
        places = json.loads((folder / INDEX).read_text())["weight_map"]
        name = next(iter(places))
        if value == "..":
            (folder / places[name]).rename(folder.parent / places[name])
        places[name] = f"../{places[name]}" if value == ".." else value
        (folder / INDEX).write_text(json.dumps({"weight_map": places}))

    return damage


def without(file: str):
    return lambda folder: (folder / file).unlink()


def renamed(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ROPE = {"rope_type": "nonesuch", "rope_theta": 10000.0}
EXTRA = with_tensors(lambda tensors: tensors.update(bias=torch.ones(2)))
DAMAGES = {  # the folder, what is done to it, and what the error says
    "a thousand million layers": ("llama", edited(num_hidden_layers=10**9), CONFIG, "num_hidden_layers"),
    "no width": ("llama", edited(hidden_size=0), CONFIG, "hidden_size"),
    "a negative width": ("opt", edited(ffn_dim=-8), CONFIG, "ffn_dim"),
    "heads: True": ("llama", edited(num_key_value_heads=True), CONFIG, "num_key_value_heads"),
    "dtype: []": ("llama", edited(dtype=[]), CONFIG, "dtype"),
    "dtype: int8": ("llama", edited(dtype="int8"), CONFIG, "dtype"),
    "padding outside": ("opt", edited(pad_token_id=5000), CONFIG, "Padding_idx"),
    "activation": ("llama", edited(hidden_act="nonesuch"), CONFIG, "transformers has no 'nonesuch'"),
    "rope": ("llama", edited(rope_scaling=ROPE), CONFIG, "transformers has no 'nonesuch'"),
    "attention": ("llama", edited(_attn_implementation="nonesuch"), CONFIG, "nonesuch"),
    "quantized": (
        "llama",
        edited(quantization_config={"quant_method": "gptq", "bits": 4}),
        CONFIG,
        "quantized",
        "gptq",
    ),
    "config: a list": ("llama", written(CONFIG, "[]"), CONFIG),
    "config: half": ("llama", written(CONFIG, "{"), CONFIG),
    "generation: a list": ("llama", written("generation_config.json", "[]"), "generation_config.json"),
    "index: of a list": ("shards", written(INDEX, '{"weight_map": []}'), INDEX, "damaged"),
    "index: half": ("shards", written(INDEX, "{"), INDEX, "damaged"),
    "index: None": ("shards", first_shard_at(None), INDEX, "same folder"),
    "index: outside": ("shards", first_shard_at(".."), INDEX, "same folder"),
    "no index": ("shards", without(INDEX), f"no {INDEX}", "get that file too"),
    "another name": ("llama", renamed, "rename it to model.safetensors"),
    "no weights": ("opt", without(WEIGHTS), "has no weights"),
    "a tensor too many": ("llama", EXTRA, "1 tensors are unexpected, such as bias"),
    "weights from LFS": ("llama", written(WEIGHTS, LFS), "run 'git lfs pull'"),
    "a tokenizer from LFS": ("llama", written("tokenizer.json", LFS), "run 'git lfs pull'"),
    "an adapter": ("llama", only("adapter_config.json", "{}"), "PEFT adapter", "merge it into its base model first"),
    "T5": ("llama", only(CONFIG, '{"model_type": "t5"}'), "'t5' model isn't a decoder that continues a text"),
}
LOADED_ONLY = {  # what only a loaded model has
    "no tokens to generate": ("llama", edited("generation_config.json", max_new_tokens=-1), "generation_config.json"),
    "a base's heads": ("sliced", edited(base={"head_dim": 10**9}), CONFIG, "head_dim"),
    "a text for an eps": ("sliced", edited(norm_eps=["1e-5"] * 5), CONFIG, "norm_eps"),
    "no number for an eps": ("sliced", edited(norm_eps=[float("nan")] * 5), CONFIG, "norm_eps"),
}


@pytest.mark.parametrize(
    ("loader", "damage"), [*product(LOADERS, DAMAGES), *(("load", damage) for damage in LOADED_ONLY)]
)
def test_a_damaged_folder_is_refused_by_its_name_with_the_remedy(loader, damage, damaged):
    name, change, *fragments = (DAMAGES | LOADED_ONLY)[damage]
    folder = damaged(name, change)
    assert_refused(LOADERS[loader], folder, folder, *fragments)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_not_floating_point_are_refused(dtype, damaged):
    name = "model.layers.1.mlp.up_proj.bias"
    as_dtype = lambda tensors: tensors.update({name: tensors[name].to(dtype)})  # noqa: E731
    for save, file in ((save_file, WEIGHTS), (torch.save, "pytorch_model.bin")):
        folder = damaged("llama", with_tensors(as_dtype, save, file), file)
        assert_refused(minislice.load, folder, folder / file, name)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_file_of_tensors_loads_as_their_safetensors_file_does(zipped, good, damaged):
    save = lambda tensors, path: torch.save(tensors, path, _use_new_zipfile_serialization=zipped)  # noqa: E731
    folder = damaged("llama", with_tensors(lambda tensors: None, save, "pytorch_model.bin"))
    weights = minislice.load(folder)[0].state_dict()
    assert all(torch.equal(weights[name], t) for name, t in minislice.load(good / "llama")[0].state_dict().items())


class Malicious:
    """Prints where it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


KINDS = {"objects": {"a": Malicious()}, "object": Malicious(), "numbers": {"a": 1}, "bytes": b"no pickle at all"}


@pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)
def test_a_bin_file_of_anything_else_is_refused_and_not_run(content, damaged, capsys):
    folder = damaged("llama", without(WEIGHTS))
    torch.save(content, folder / "pytorch_model.bin")
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    assert_refused(minislice.load, folder, folder / "pytorch_model.bin", "safetensors")
    assert capsys.readouterr().out == ""


def test_a_gguf_file_from_lfs_is_told(tmp_path):
    (tmp_path / "model.gguf").write_text(LFS)
    assert_refused(minislice.load, tmp_path / "model.gguf", "run 'git lfs pull'")


# What transformers loads, minislice does

OLD = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
OLD |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for i in range(2)}
OLD |= {"transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(4), "transformer.position_ids": torch.arange(8)}


@pytest.mark.parametrize(
    ("prefix", "save", "file"), [("transformer.", torch.save, "pytorch_model.bin"), ("", save_file, WEIGHTS)]
)
def test_buffers_that_older_releases_saved_are_passed_over(prefix, save, file, tmp_path):
    model = FamilyRecipe("gpt2").model().float()
    model.save_pretrained(tmp_path)

    def as_then(tensors):
        now = {**tensors, **OLD}
        tensors.clear()
        tensors.update({name.replace("transformer.", prefix): tensor for name, tensor in now.items()})

    with_tensors(as_then, save, file)(tmp_path)
    loaded = minislice.load(tmp_path)[0]
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    if file == WEIGHTS:
        TrainedWeights(tmp_path, "auto")


@pytest.mark.parametrize(("family", "base"), [("llama", {}), ("sliced", {"base": {"return_dict": False}})])
def test_a_config_without_return_dict_computes_the_same(family, base, good, damaged, tmp_path):
    folder = damaged(family, edited(return_dict=False, **base))
    same, found = (minislice.perplexity(minislice.load(place)[0], IDS) for place in (good / family, folder))
    assert same == found
    if family == "llama":
        slice_streamed(folder, IDS, tmp_path / "out", width=12)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
OwnConfig = type("OwnConfig", (LlamaConfig,), {"model_type": "own"})
OwnForCausalLM = type("OwnForCausalLM", (LlamaForCausalLM,), {"config_class": OwnConfig})
"""


def test_the_code_of_a_model_runs_only_if_it_is_trusted(good, damaged, monkeypatch, run):
    monkeypatch.setitem(FAMILIES, "own", FAMILIES["llama"])
    places = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnForCausalLM"}
    folder = damaged("llama", edited(model_type="own", auto_map=places))
    (folder / "code.py").write_text(CODE)
    commands = {"verify": ["--seqlen", 8, "--dtypes", "float64"], "cost": ["--rounds", 1, "--length", 4, "--prompt", 4]}
    for loader in LOADERS.values():
        assert_refused(loader, folder, "trust_remote_code=True")
    for command, options in commands.items():
        assert "`--trust-remote-code`" in run(command, folder, *options, "--quiet")[2]
        assert run(command, folder, *options, "--quiet", "--trust-remote-code")[0] == 0
    model = minislice.load(folder, trust_remote_code=True)[0]
    assert type(model).__name__ == "OwnForCausalLM" and type(model).__module__.startswith("transformers_modules")
    assert minislice.perplexity(model, IDS) == minislice.perplexity(minislice.load(good / "llama")[0], IDS)
    assert type(TrainedWeights(folder, "auto", True).net.model).__name__ == "OwnForCausalLM"


def test_a_sliced_models_own_code_is_not_run(good):
    assert type(minislice.load(good / "sliced", trust_remote_code=True)[0]) is SlicedForCausalLM


# What is no model at all


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [None, "", b"mini-opt", "\udcff"], ids=repr)
def test_what_is_no_name_is_refused(name):
    assert_refused(minislice.load, name)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("device", ["nonesuch", "meta", "cuda:99"], ids=repr)
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device, good, monkeypatch):
    monkeypatch.setattr("minislice.storage.checkpoint.load_config", lambda source: 1 / 0)
    assert_refused(lambda folder: minislice.load(folder, device=device), good / "llama", "device", device)
