"""A model's folder that can't be right is refused before its weights are loaded: at once, in one ValueError."""

import json
import pickle
import shutil
import time
from pathlib import Path

import pytest
import torch
from family_models import FamilyRecipe
from models import Recipe
from safetensors.torch import load_file, save_file

import minislice
from minislice.architecture.families import FAMILIES, find_family
from minislice.architecture.modeling import SlicedForCausalLM
from minislice.large.source import TrainedWeights
from minislice.large.streaming import slice_streamed
from minislice.storage.files import INDEX

LOADERS = {"load": minislice.load, "stream": lambda folder: TrainedWeights(folder, "auto")}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """Models that can be loaded; not to be changed."""
    folder = tmp_path_factory.mktemp("good")
    Recipe("llama").model().float().save_pretrained(folder / "llama")
    Recipe("opt").model().float().save_pretrained(folder / "opt")
    Recipe("llama").model().float().save_pretrained(folder / "shards", max_shard_size="8KB")
    sliced = minislice.slice_model(Recipe("llama").model().float(), Recipe("llama").tokens(), width=12)
    sliced.save_pretrained(folder / "sliced")
    for name in ("llama", "opt", "shards", "sliced"):
        minislice.load(folder / name)
    return folder


def edited(folder: Path, target: Path, file: str = "config.json", **changes) -> Path:
    """A copy with other values in one of its files."""
    shutil.copytree(folder, target)
    path = target / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


def assert_refused(load, folder, *fragments) -> None:
    """A ValueError with every fragment, in less than five seconds."""
    began = time.perf_counter()
    with pytest.raises(ValueError) as error:
        load(folder)
    assert time.perf_counter() - began < 5
    for fragment in fragments:
        assert str(fragment) in str(error.value)


VALUES = [
    *(("llama", name, 10**9) for name in ("num_hidden_layers", "head_dim", "vocab_size")),
    *(("llama", name, 0) for name in ("hidden_size", "num_attention_heads")),
    *(("opt", name, -8) for name in ("ffn_dim", "hidden_size")),
    *(("llama", "num_key_value_heads", value) for value in (True, 1.5, "2")),
    *(("llama", "dtype", value) for value in ([], "int8")),
    *(("opt", "pad_token_id", 5000), ("llama", "hidden_act", "nonesuch")),
    ("llama", "rope_scaling", {"rope_type": "nonesuch", "rope_theta": 10000.0}),
    ("llama", "_attn_implementation", "nonesuch"),
]
IN_WORDS = {
    "pad_token_id": "Padding_idx",
    "hidden_act": "transformers has no 'nonesuch'",
    "rope_scaling": "transformers has no 'nonesuch'",  # the older name for rope_parameters
    "_attn_implementation": "nonesuch",
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(("family", "name", "value"), VALUES)
def test_a_value_that_no_model_has_is_refused(loader, family, name, value, good, tmp_path):
    folder = edited(good / family, tmp_path / "model", **{name: value})
    assert_refused(LOADERS[loader], folder, folder / "config.json", IN_WORDS.get(name, name))


@pytest.mark.parametrize(("name", "value"), [("head_dim", 10**9), ("num_hidden_layers", 10**9), ("vocab_size", 0)])
def test_it_is_refused_in_the_dense_config_of_a_sliced_model_too(name, value, good, tmp_path):
    base = json.loads((good / "sliced" / "config.json").read_text())["base"]
    folder = edited(good / "sliced", tmp_path / "model", base={**base, name: value})
    assert_refused(minislice.load, folder, folder / "config.json", name)


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("content", ["[]", "{"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_what_should_be_an_object_and_is_not_is_refused(loader, file, content, good, tmp_path):
    folder = shutil.copytree(good / "llama", tmp_path / "model")
    (folder / file).write_text(content)
    assert_refused(LOADERS[loader], folder, folder / file)


@pytest.mark.parametrize("changes", [{"max_new_tokens": []}, {"max_new_tokens": -1}], ids=str)
def test_generation_settings_that_make_no_sense_are_refused(changes, good, tmp_path):
    folder = edited(good / "llama", tmp_path / "model", "generation_config.json", **changes)
    assert_refused(minislice.load, folder, folder / "generation_config.json")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("method", ["gptq", "bitsandbytes", "nonesuch"])
def test_quantized_weights_are_refused_by_their_method(loader, method, good, tmp_path):
    settings = {"quant_method": method, "bits": 4, "load_in_4bit": True}
    folder = edited(good / "llama", tmp_path / "model", quantization_config=settings)
    assert_refused(LOADERS[loader], folder, folder / "config.json", "quantized", method)


# ---- files of weights ----


def with_tensors(folder: Path, target: Path, change, save=save_file, file: str = "model.safetensors") -> Path:
    """A copy whose tensors were changed, in one file."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    change(tensors)
    save(tensors, target / file)
    return target


DTYPES = {"I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn}


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_that_are_not_floating_point_are_refused(dtype, good, tmp_path):
    name = "model.layers.1.mlp.up_proj.bias"

    def cast(tensors):
        tensors[name] = tensors[name].to(DTYPES[dtype])

    folder = with_tensors(good / "llama", tmp_path / "model", cast)
    assert_refused(minislice.load, folder, folder / "model.safetensors", name, dtype, "quantization_config")
    folder = with_tensors(good / "llama", tmp_path / "bin", cast, torch.save, "pytorch_model.bin")
    assert_refused(minislice.load, folder, folder / "pytorch_model.bin", name, str(DTYPES[dtype])[6:])


@pytest.mark.parametrize("zipped", [True, False])
def test_a_bin_file_of_tensors_loads_as_their_safetensors_file_does(zipped, good, tmp_path):
    def save(tensors, path):
        torch.save(tensors, path, _use_new_zipfile_serialization=zipped)

    folder = with_tensors(good / "llama", tmp_path / "model", lambda tensors: None, save, "pytorch_model.bin")
    weights = minislice.load(folder)[0].state_dict()
    assert all(torch.equal(weights[name], t) for name, t in minislice.load(good / "llama")[0].state_dict().items())


class Malicious:
    """Prints where it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    "content",
    [{"a": Malicious()}, Malicious(), [1, 2], {"a": 1}, b"no pickle at all", pickle.dumps({"a": 1}, protocol=0)],
    ids=["malicious", "malicious itself", "a list", "numbers", "bytes", "another pickle"],
)
def test_a_bin_file_of_anything_else_is_refused_and_not_run(content, good, tmp_path, capsys):
    folder = shutil.copytree(good / "llama", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / "pytorch_model.bin").write_bytes(content)
    else:
        torch.save(content, folder / "pytorch_model.bin")
    assert_refused(minislice.load, folder, folder / "pytorch_model.bin", "safetensors")
    assert capsys.readouterr().out == ""


def with_index(folder: Path, target: Path, change) -> Path:
    """A copy with an index whose first entry was changed."""
    shutil.copytree(folder, target)
    fields = json.loads((target / INDEX).read_text())
    change(fields["weight_map"])
    (target / INDEX).write_text(json.dumps(fields))
    return target


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("value", [None, "", "/etc/passwd", "../shards/model.safetensors"], ids=str)
def test_an_index_names_files_beside_it_and_nothing_else(loader, value, good, tmp_path):
    def change(files):
        files[next(iter(files))] = value

    folder = with_index(good / "shards", tmp_path / "model", change)
    assert_refused(LOADERS[loader], folder, folder / INDEX, "same folder")


@pytest.mark.parametrize("loader", LOADERS)
def test_weights_outside_the_folder_are_not_read(loader, good, tmp_path):
    """Where transformers would: the file is there, and whole."""

    def change(files):
        name = next(iter(files.values()))
        shutil.copy(good / "shards" / name, tmp_path / name)
        files.update({key: f"../{name}" for key in files if files[key] == name})

    assert_refused(LOADERS[loader], with_index(good / "shards", tmp_path / "model", change), INDEX, "same folder")


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("content", ["[]", '{"weight_map": []}', "{"])
def test_an_index_that_is_none_is_refused(loader, content, good, tmp_path):
    folder = shutil.copytree(good / "shards", tmp_path / "model")
    (folder / INDEX).write_text(content)
    assert_refused(LOADERS[loader], folder, folder / INDEX, "damaged")


# ---- folders that hold something else, or too little ----

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def renamed(old: str, new: str):
    return lambda folder: (folder / old).rename(folder / new)


def only(name: str, text: str):
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_text(text)

    return change


INCOMPLETE = {
    "shards": (lambda folder: (folder / INDEX).unlink(), f"no {INDEX}", "get that file too"),
    "llama": (renamed("model.safetensors", "model.fp16.safetensors"), "rename it to model.safetensors"),
    "opt": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    "weights from LFS": (lambda folder: (folder / "model.safetensors").write_text(LFS), "run 'git lfs pull'"),
    "a tokenizer from LFS": (lambda folder: (folder / "tokenizer.json").write_text(LFS), "run 'git lfs pull'"),
    "a shard from LFS": (lambda folder: next(folder.glob("*.safetensors")).write_text(LFS), "run 'git lfs pull'"),
    "an adapter": (only("adapter_config.json", "{}"), "PEFT adapter", "merge it into its base model first"),
    "T5": (only("config.json", '{"model_type": "t5"}'), "'t5' model isn't a decoder that continues a text"),
    "BERT": (only("config.json", '{"model_type": "vit"}'), "'vit' model isn't a decoder that continues a text"),
}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("what", INCOMPLETE)
def test_what_a_folder_lacks_is_told_with_the_remedy(loader, what, good, tmp_path):
    change, *fragments = INCOMPLETE[what]
    folder = shutil.copytree(good / (what if what in ("shards", "opt") else "llama"), tmp_path / "model")
    change(folder)
    assert_refused(LOADERS[loader], folder, folder, *fragments)


def test_a_gguf_file_from_lfs_is_told(tmp_path):
    (tmp_path / "model.gguf").write_text(LFS)
    assert_refused(minislice.load, tmp_path / "model.gguf", "run 'git lfs pull'")


@pytest.mark.parametrize("change", [{"model_type": "nonesuch"}, {"post_norm": True}], ids=str)
def test_a_refusal_of_a_family_gives_its_reason_and_no_list(change, good):
    config = minislice.load(good / "opt")[0].config
    config.model_type = change.get("model_type", "opt")
    config.do_layer_norm_before = "post_norm" not in change
    with pytest.raises(ValueError, match="minislice can't slice") as error:
        find_family(config)
    assert "qwen" not in str(error.value) and len(str(error.value)) < 250


@pytest.mark.parametrize("value", ["1e-5", None, -1.0, float("nan"), float("inf"), [1e-5]], ids=repr)
def test_an_eps_that_is_no_number_is_refused(value, good, tmp_path):
    eps = json.loads((good / "sliced" / "config.json").read_text())["norm_eps"]
    folder = edited(good / "sliced", tmp_path / "model", norm_eps=[value, *eps[1:]])
    assert_refused(minislice.load, folder, folder / "config.json", "norm_eps")


# ---- what transformers loads, minislice does ----

OLD = {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4), "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}
OLD |= {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8) for i in range(2)}
OLD |= {"transformer.h.0.attn.rotary_emb.inv_freq": torch.ones(4), "transformer.position_ids": torch.arange(8)}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_buffers_that_older_releases_saved_are_passed_over(file, prefix, tmp_path):
    model = FamilyRecipe("gpt2").model().float()
    model.save_pretrained(tmp_path / "new")

    def old(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.") if not prefix else name] = tensors.pop(name)
        tensors |= {name.replace("transformer.", prefix): tensor for name, tensor in OLD.items()}

    folder = with_tensors(tmp_path / "new", tmp_path / "old", old, torch.save if "bin" in file else save_file, file)
    loaded = minislice.load(folder)[0]
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    if file == "model.safetensors":
        TrainedWeights(folder, "auto")


@pytest.mark.parametrize("loader", LOADERS)
def test_any_other_surplus_tensor_is_refused(loader, good, tmp_path):
    folder = with_tensors(good / "llama", tmp_path / "model", lambda tensors: tensors.update(bias=torch.ones(2)))
    assert_refused(LOADERS[loader], folder, "1 tensors are unexpected, such as bias")


@pytest.mark.parametrize("family", ["llama", "sliced"])
def test_a_config_without_return_dict_computes_the_same(family, good, tmp_path):
    fields = json.loads((good / family / "config.json").read_text())
    changes = {"base": {**fields["base"], "return_dict": False}} if "base" in fields else {}
    folder = edited(good / family, tmp_path / "model", return_dict=False, **changes)
    tokens = Recipe("llama").tokens()
    assert minislice.perplexity(minislice.load(folder)[0], tokens) == minislice.perplexity(
        minislice.load(good / family)[0], tokens
    )
    if family == "llama":
        slice_streamed(folder, tokens, tmp_path / "out", width=12)
        minislice.perplexity(minislice.load(tmp_path / "out")[0], tokens)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("loader", LOADERS)
def test_the_code_of_a_model_runs_if_it_is_trusted(loader, good, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "own", FAMILIES["llama"])
    places = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnForCausalLM"}
    folder = edited(good / "llama", tmp_path / "model", model_type="own", auto_map=places)
    (folder / "code.py").write_text(CODE)
    assert_refused(LOADERS[loader], folder, "trust_remote_code=True")
    model = minislice.load(folder, trust_remote_code=True)[0]
    assert type(model).__name__ == "OwnForCausalLM" and type(model).__module__.startswith("transformers_modules")
    tokens = Recipe("llama").tokens()
    assert minislice.perplexity(model, tokens) == minislice.perplexity(minislice.load(good / "llama")[0], tokens)
    assert type(TrainedWeights(folder, "auto", True).net.model).__name__ == "OwnForCausalLM"


def test_a_sliced_models_own_code_is_not_run(good):
    model = minislice.load(good / "sliced", trust_remote_code=True)[0]
    assert type(model) is SlicedForCausalLM


# ---- what is no model at all ----


@pytest.fixture
def unchecked(monkeypatch):
    """As a user calls: the annotations, which only tests check, would refuse what has the wrong type."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", [None, "", b"mini-opt", "\udcff"], ids=repr)
def test_what_is_no_name_is_refused(name):
    assert_refused(minislice.load, name)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("device", ["nonesuch", "meta", "cuda:99"], ids=repr)
def test_a_device_that_is_not_there_is_refused_before_anything_is_read(device, good, monkeypatch):
    monkeypatch.setattr("minislice.storage.checkpoint.load_config", lambda source: 1 / 0)
    assert_refused(lambda folder: minislice.load(folder, device=device), good / "llama", "device", device)
