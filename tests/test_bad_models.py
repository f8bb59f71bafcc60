"""A model's folder that can't be right is refused in one ValueError; what transformers loads, minislice loads too."""

from itertools import product
from pathlib import Path

import pytest
import torch
from models import Recipe
from safetensors.torch import load_file
from streamed import edit, edit_config, logits

import minislice
from minislice.architecture.families import FAMILIES
from minislice.large.source import TrainedWeights
from minislice.storage.files import INDEX

LOADERS = {"load": minislice.load, "stream": lambda folder: TrainedWeights(folder, "auto")}
IDS = Recipe("llama").tokens()
EXPECTED = logits(Recipe("llama").model().float(), IDS)
WEIGHTS, SHARD, CONFIG = "model.safetensors", "model-00001-of-00002.safetensors", "config.json"


@pytest.fixture
def folder(tmp_path) -> Path:
    Recipe("llama").model().float().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def assert_refused(load, folder, *fragments) -> None:
    with pytest.raises(ValueError) as error:
        load(folder)
    assert all(str(fragment) in str(error.value) for fragment in fragments), error


def written(file: str, content: str):
    return lambda folder: (folder / file).write_text(content)


def edited(**changes):
    return lambda folder: edit_config(folder, **changes)


def only(file: str, content: str, left: str = ""):
    """No other file is left, or this one alone."""
    return lambda folder: [*(p.unlink() for p in folder.iterdir() if p.name != left), written(file, content)(folder)]


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DAMAGES = {  # what is done to the folder, and what the error says
    "a width in words": (edited(hidden_size="twenty"), CONFIG, "hidden_size"),
    "quantized": (edited(quantization_config={"quant_method": "gptq", "bits": 4}), CONFIG, "quantized", "gptq"),
    "config: half": (written(CONFIG, "{"), CONFIG),
    "no index": (lambda folder: (folder / WEIGHTS).rename(folder / SHARD), f"no {INDEX}", "get that file too"),
    "an index of nothing": (only(INDEX, "{}", CONFIG), f"{INDEX} has no weight_map"),
    "another name": (lambda folder: (folder / WEIGHTS).rename(folder / "x.safetensors"), "rename it to model"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "has no weights"),
    "a tensor too many": (lambda folder: edit(folder / WEIGHTS, lambda t: t.update(x=torch.ones(2))), "unexpected"),
    "weights from LFS": (written(WEIGHTS, LFS), "run 'git lfs pull'"),
    "a tokenizer from LFS": (written("tokenizer.json", LFS), "run 'git lfs pull'"),
    "an adapter": (only("adapter_config.json", "{}"), "PEFT adapter", "merge it into its base model first"),
    "T5": (only(CONFIG, '{"model_type": "t5"}'), "'t5' model isn't a decoder that continues a text"),
}


@pytest.mark.parametrize(("loader", "damage"), [*product(LOADERS, DAMAGES)])
def test_a_damaged_folder_is_refused_by_its_name_with_the_remedy(loader, damage, folder):
    change, *fragments = DAMAGES[damage]
    change(folder)
    assert_refused(LOADERS[loader], folder, folder, *fragments)


class Malicious:
    def __reduce__(self):
        return print, ("unpickled",)


def test_a_bin_file_of_tensors_is_loaded_and_one_of_code_is_refused_and_not_run(folder, capsys):
    file = folder / "pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS), file)
    (folder / WEIGHTS).unlink()
    assert torch.equal(logits(minislice.load(folder)[0], IDS), EXPECTED)
    torch.save({"a": Malicious()}, file)
    assert_refused(minislice.load, folder, file, "safetensors")
    assert capsys.readouterr().out == ""


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
OwnConfig = type("OwnConfig", (LlamaConfig,), {"model_type": "own"})
OwnForCausalLM = type("OwnForCausalLM", (LlamaForCausalLM,), {"config_class": OwnConfig})
"""


def test_the_code_of_a_model_runs_only_if_it_is_trusted(folder, monkeypatch, run):
    monkeypatch.setitem(FAMILIES, "own", FAMILIES["llama"])
    places = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnForCausalLM"}
    edited(model_type="own", auto_map=places)(folder)
    (folder / "code.py").write_text(CODE)
    for loader in LOADERS.values():
        assert_refused(loader, folder, "trust_remote_code=True")
    command = ["verify", folder, "--seqlen", 8, "--dtypes", "float64", "--quiet"]
    assert "`--trust-remote-code`" in run(*command)[2]
    assert run(*command, "--trust-remote-code")[0] == 0
    model = minislice.load(folder, trust_remote_code=True)[0]
    assert type(model).__name__ == "OwnForCausalLM" and type(model).__module__.startswith("transformers_modules")
    assert torch.equal(logits(model, IDS), EXPECTED)
    assert type(TrainedWeights(folder, "auto", True).net.model).__name__ == "OwnForCausalLM"


@pytest.mark.parametrize("device", ["nonesuch", "cuda:99", "mps"])
def test_a_device_that_is_not_there_is_refused_in_short_before_anything_is_read(device, folder, monkeypatch):
    monkeypatch.setattr("minislice.storage.checkpoint.load_config", lambda source: 1 / 0)
    with pytest.raises(ValueError, match=rf"device '{device}'.{{,300}}$"):  # of mps torch says 5,000 letters
        minislice.load(folder, device=device)
