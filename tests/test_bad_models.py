"""A model's folder that can't be right is refused in one ValueError; what transformers loads, minislice loads too."""

import json
import shutil
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
from minislice.storage.files import INDEX

LOADERS = {"load": minislice.load, "stream": lambda folder: TrainedWeights(folder, "auto")}
IDS = Recipe("llama").tokens()
WEIGHTS, BIN, CONFIG = "model.safetensors", "pytorch_model.bin", "config.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Models that can be loaded; not to be changed."""
    folder = tmp_path_factory.mktemp("good")
    Recipe("llama").model().float().save_pretrained(folder / "llama")
    Recipe("llama").model().float().save_pretrained(folder / "shards", max_shard_size="8KB")
    minislice.slice_model(Recipe("llama").model().float(), IDS, width=12).save_pretrained(folder / "sliced")
    return folder


@pytest.fixture
def damaged(good, tmp_path):
    """A copy of a model's folder, to which something is done."""

    def damaged(name: str, change) -> Path:
        folder = shutil.copytree(good / name, tmp_path / "model")
        change(folder)
        return folder

    return damaged


def assert_refused(load, folder, *fragments) -> None:
    with pytest.raises(ValueError) as error:
        load(folder)
    assert all(str(fragment) in str(error.value) for fragment in fragments), error


def assert_same_weights(found, expected) -> None:
    found = found.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def edited(**changes):
    """Other values in its config."""

    def damage(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(values | changes))

    return damage


def written(file: str, content: str):
    return lambda folder: (folder / file).write_text(content)


def only(file: str, content: str):
    """No other file is left."""
    return lambda folder: [*(path.unlink() for path in folder.iterdir()), written(file, content)(folder)]


def with_tensor(name: str, tensor: torch.Tensor):
    """One tensor more, or another in its place."""
    return lambda folder: save_file(load_file(folder / WEIGHTS) | {name: tensor}, folder / WEIGHTS)


def as_bin(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / BIN)
    (folder / WEIGHTS).unlink()


def a_shard_outside(folder: Path) -> None:
    """Where transformers would read it."""
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    name = next(iter(places))
    (folder / places[name]).rename(folder.parent / places[name])
    places[name] = f"../{places[name]}"
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
GPTQ = {"quant_method": "gptq", "bits": 4}
DAMAGES = {  # the folder, what is done to it, and what the error says
    "a width in words": ("llama", edited(hidden_size="twenty"), CONFIG, "hidden_size"),
    "dtype: int8": ("llama", edited(dtype="int8"), CONFIG, "dtype"),
    "quantized": ("llama", edited(quantization_config=GPTQ), CONFIG, "quantized", "gptq"),
    "config: half": ("llama", written(CONFIG, "{"), CONFIG),
    "index: outside": ("shards", a_shard_outside, INDEX, "same folder"),
    "no index": ("shards", lambda folder: (folder / INDEX).unlink(), f"no {INDEX}", "get that file too"),
    "another name": ("llama", lambda folder: (folder / WEIGHTS).rename(folder / "x.safetensors"), "rename it to model"),
    "no weights": ("llama", lambda folder: (folder / WEIGHTS).unlink(), "has no weights"),
    "a tensor too many": ("llama", with_tensor("x", torch.ones(2)), "1 tensors are unexpected, such as x"),
    "integers": ("llama", with_tensor("model.norm.weight", torch.ones(20, dtype=torch.int8)), WEIGHTS, "model.norm.w"),
    "weights from LFS": ("llama", written(WEIGHTS, LFS), "run 'git lfs pull'"),
    "a tokenizer from LFS": ("llama", written("tokenizer.json", LFS), "run 'git lfs pull'"),
    "an adapter": ("llama", only("adapter_config.json", "{}"), "PEFT adapter", "merge it into its base model first"),
    "T5": ("llama", only(CONFIG, '{"model_type": "t5"}'), "'t5' model isn't a decoder that continues a text"),
}


@pytest.mark.parametrize(("loader", "damage"), [*product(LOADERS, DAMAGES)])
def test_a_damaged_folder_is_refused_by_its_name_with_the_remedy(loader, damage, damaged):
    name, change, *fragments = DAMAGES[damage]
    folder = damaged(name, change)
    assert_refused(LOADERS[loader], folder, folder, *fragments)


def test_a_bin_file_of_tensors_loads_as_their_safetensors_file_does(good, damaged):
    assert_same_weights(minislice.load(damaged("llama", as_bin))[0], minislice.load(good / "llama")[0])


class Malicious:
    """Prints where it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("content", [{"a": Malicious()}, {"a": 1}], ids=["code", "numbers"])
def test_a_bin_file_of_anything_else_is_refused_and_not_run(content, damaged, capsys):
    folder = damaged("llama", lambda folder: (folder / WEIGHTS).unlink())
    torch.save(content, folder / BIN)
    assert_refused(minislice.load, folder, folder / BIN, "safetensors")
    assert capsys.readouterr().out == ""


OLD = {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
OLD |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for i in range(2)}
OLD |= {"transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(4), "transformer.position_ids": torch.arange(8)}


def test_buffers_that_older_releases_saved_are_passed_over(tmp_path):
    """And the base model's name before that of each tensor may be missing."""
    model = FamilyRecipe("gpt2").model().float()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS) | OLD
    save_file({name.removeprefix("transformer."): x for name, x in tensors.items()}, tmp_path / WEIGHTS)
    assert_same_weights(minislice.load(tmp_path)[0], model)
    TrainedWeights(tmp_path, "auto")


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
    for loader in LOADERS.values():
        assert_refused(loader, folder, "trust_remote_code=True")
    command = ["verify", folder, "--seqlen", 8, "--dtypes", "float64", "--quiet"]
    assert "`--trust-remote-code`" in run(*command)[2]
    assert run(*command, "--trust-remote-code")[0] == 0
    model = minislice.load(folder, trust_remote_code=True)[0]
    assert type(model).__name__ == "OwnForCausalLM" and type(model).__module__.startswith("transformers_modules")
    assert_same_weights(model, minislice.load(good / "llama")[0])
    assert type(TrainedWeights(folder, "auto", True).net.model).__name__ == "OwnForCausalLM"


def test_a_sliced_models_own_code_is_not_run(good):
    assert type(minislice.load(good / "sliced", trust_remote_code=True)[0]) is SlicedForCausalLM


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("device", ["nonesuch", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device, good, monkeypatch):
    monkeypatch.setattr("minislice.storage.checkpoint.load_config", lambda source: 1 / 0)
    assert_refused(lambda folder: minislice.load(folder, device=device), good / "llama", "device", device)
