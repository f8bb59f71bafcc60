"""An exported model is an ordinary one: transformers alone loads it from its folder, and its logits are the same."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from models import REPRESENTATIVES, Recipe, fixed
from streamed import logits
from test_checkpoint import sliced
from transformers import AutoModelForCausalLM

import minislice
from minislice.storage import stock

LLAMA, PHI = (Recipe(family, heads=4, kv_heads=2, layers=3, eps=0.03) for family in ("llama", "phi"))
MIXTURE = Recipe("qwen2_moe", heads=4, head_dim=4)
stock_ready = partial(sliced, width=12, adapter="none", slice_head=True)


def exported(model, tokens, folder, accuracy=1e-5):
    minislice.export(model, folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain).__module__.startswith("transformers.models.")
    expected = logits(model, tokens)
    assert (logits(plain, tokens) - expected).norm() / expected.norm() < accuracy, "logits differ"
    return plain


SCRIPT = """
import sys
sys.modules["minislice"] = None  # importing it fails, installed or not
import torch
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    tokens, expected, generated = torch.load(folder.removesuffix("-again") + ".pt")
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code="stock" not in folder)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.generate(tokens[:2, :5], max_new_tokens=6, do_sample=False), generated)
    print(type(model).__module__.split(".")[0])
    model.save_pretrained(folder + "-again")
"""


def test_without_minislice_transformers_loads_what_was_saved_and_what_was_exported(tmp_path):
    """What travels with a saved model describes every family; also where it is saved again."""
    recipes = {"saved": Recipe("opt")} | {family: fixed(family, variant) for family, variant in REPRESENTATIVES}
    models = {"stock": stock_ready(LLAMA)}
    for name, recipe in recipes.items():
        models[name] = sliced(recipe, head="fitted" if name == "saved" else None)
    for name, (model, tokens) in models.items():
        save = minislice.export if name == "stock" else minislice.save
        save(model, tmp_path / name)
        generated = model.generate(tokens[:2, :5], max_new_tokens=6, do_sample=False)
        torch.save([tokens, logits(model, tokens), generated], tmp_path / f"{name}.pt")
    places = ["stock", "stock-again", *recipes, "saved-again"]
    command = [sys.executable, "-c", SCRIPT, *(str(tmp_path / name) for name in places)]
    variables = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["transformers"] * 2 + ["transformers_modules"] * (len(recipes) + 1)


ACCURACY = {torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 0.16}  # rotary angles are float32


@pytest.mark.parametrize("dtype", ACCURACY, ids=str)
def test_an_export_has_no_code_and_changes_nothing_in_the_model(dtype, tmp_path):
    model, tokens = stock_ready(PHI, dtype=dtype)
    model.generation_config.max_new_tokens = 3
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = exported(model, tokens, tmp_path / "stock", ACCURACY[dtype])
    assert {parameter.dtype for parameter in plain.parameters()} == {dtype}
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not list((tmp_path / "stock").glob("*.py"))
    assert "minislice" not in (tmp_path / "stock" / "config.json").read_text()
    assert plain.generation_config.max_new_tokens == 3
    assert f"| parameters | {plain.num_parameters():,} |" in (tmp_path / "stock" / "README.md").read_text()


MISTAKES = {
    "_fill_norm": lambda right: lambda norm, net, scale, shift: right(norm, net, torch.ones_like(scale), shift),
    "mean_zero_embedding": lambda right: lambda k: torch.eye(k, k + 1, dtype=torch.float64),
}


@pytest.mark.parametrize("place", MISTAKES)
def test_exporting_fails_on(place, tmp_path, monkeypatch):
    monkeypatch.setattr(stock, place, MISTAKES[place](getattr(stock, place)))
    with pytest.raises(AssertionError, match="logits differ"):
        exported(*stock_ready(PHI), tmp_path / "stock")


WHOLE = {"width": None, "slicing": 0, "slice_head": False}
EXPORTED = {
    "fitted head": (PHI, {"head": "fitted"}),
    "fewer neurons and layers": (LLAMA, {"neurons": 0.5, "drop": [2, 3]}),
    "repaired": (PHI, {**WHOLE, "head": "own", "neurons": 0.3, "repair": True, "drop": [1]}),
    "tied head": (LLAMA, {**WHOLE, "neurons": 0.5}),
    "experts": (MIXTURE, {"slice_embedding": True, "head": "own", "neurons": 0.3, "multiple": 4}),
}


@pytest.mark.parametrize("case", EXPORTED)
def test_what_else_a_stock_architecture_has_is_exported(case, tmp_path):
    recipe, options = EXPORTED[case]
    plain = exported(*stock_ready(recipe, **options), tmp_path / "stock")
    is_tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert is_tied == (case == "tied head")


REFUSED = {
    "adapters": ({"adapter": "full"}, 'adapter="none" and slice_head=True'),
    "tied": ({"slice_head": False}, r"a tied head, .* 20 wide.* gets weights of its own"),
    "widths": ({"width": [10, 12, 12, 12, 12, 12, 14], "slice_head": False}, "one width"),
    "neurons": ({"neurons": [8, 16, 16]}, "MLPs have 8 to 16 neurons, and LlamaForCausalLM would have 16 in"),
    "half a layer": ({"drop": [1]}, r"blocks \[1\] are left out without the others .* leave whole layers"),
    "heads": ({"width": 14}, r"(?s)hidden size of 14; slice to another width .*multiple"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_stock_architecture_is_is_refused_with_what_to_slice_instead(case, tmp_path):
    options, message = REFUSED[case]
    model, _ = stock_ready(LLAMA, **options)
    with pytest.raises(ValueError, match=message):
        minislice.export(model, tmp_path / "stock")
    assert list(tmp_path.iterdir()) == []
