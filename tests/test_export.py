"""An exported model is an ordinary one: transformers alone loads it from its folder, and its logits are the same."""

import subprocess
import sys
import textwrap

import pytest
import torch
from family_models import FamilyRecipe
from models import Recipe
from streamed import logits
from torch import nn
from transformers import AutoModelForCausalLM

import minislice
from minislice.architecture.blocks import RMSNorm
from minislice.architecture.heads import FittedHead, TiedHead
from minislice.architecture.network import network
from minislice.storage import stock

GREEDY = {"max_new_tokens": 6, "do_sample": False}
RECIPES = {
    "llama": Recipe("llama", eps=0.03),  # an eps that counts
    "llama-grouped": Recipe("llama", heads=4, kv_heads=2, layers=3, seed=1, eps=1e-6),
    "llama-plain": Recipe("llama", biases=False, option=True, tied=False, seed=2),
    "phi": Recipe("phi", eps=0.03),
    "phi-grouped": Recipe("phi", heads=4, kv_heads=2, layers=3, tied=False, seed=1, eps=1e-6),
}


def stock_ready(recipe, *, width=12, dtype=torch.float32, **options):
    """A model sliced so that it can be exported, and tokens."""
    model, tokens = recipe.model(), recipe.tokens()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    minislice.slice_model(model, tokens, width=width, **{"adapter": "none", "slice_head": True, **options})
    return model, tokens


def exported(model, tokens, folder, accuracy=1e-5):
    """The stock model, whose logits are the sliced one's."""
    minislice.export(model, folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert type(plain).__module__.startswith("transformers.models.")
    expected = logits(model, tokens)
    assert (logits(plain, tokens) - expected).norm() / expected.norm() < accuracy, "logits differ"
    return plain


def test_without_minislice_transformers_loads_what_was_saved_and_what_was_exported(tmp_path):
    models = {f"{name}-stock": stock_ready(RECIPES[name]) for name in ("llama", "phi")}
    for family, options in {"opt": {"head": "fitted"}, "llama": {"adapter": "low-rank"}, "phi": {}}.items():
        tokens = Recipe(family).tokens()
        models[family] = minislice.slice_model(Recipe(family).model().float(), tokens, width=12, **options), tokens
    for name, (model, tokens) in models.items():
        if "stock" in name:
            minislice.export(model, tmp_path / name)
        else:
            model.save_pretrained(tmp_path / name)
        torch.save([tokens, logits(model, tokens), model.generate(tokens[:2, :5], **GREEDY)], tmp_path / f"{name}.pt")
    script = """
        import sys
        sys.modules["minislice"] = None  # importing it fails, installed or not
        import torch
        from transformers import AutoModelForCausalLM
        for folder in sys.argv[1:]:
            tokens, logits, generated = torch.load(folder + ".pt")
            for again in ("", "-again"):
                model = AutoModelForCausalLM.from_pretrained(folder + again, trust_remote_code="stock" not in folder)
                with torch.no_grad():
                    error = (model(input_ids=tokens).logits - logits).norm() / logits.norm()
                same = torch.equal(model.generate(tokens[:2, :5], max_new_tokens=6, do_sample=False), generated)
                print(type(model).__module__.split(".")[0], error.item(), same)
                model.save_pretrained(folder + "-again")
    """
    command = [sys.executable, "-c", textwrap.dedent(script), *(str(tmp_path / name) for name in models)]
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["transformers"] * 4 + ["transformers_modules"] * 6
    assert all(float(error) < 1e-5 and same == "True" for _, error, same in lines[:4])
    assert all(float(error) == 0 and same == "True" for _, error, same in lines[4:])


def test_an_export_has_no_code_no_trace_of_minislice_and_changes_nothing_in_the_model(tmp_path):
    model, tokens = stock_ready(RECIPES["phi"])
    model.generation_config.max_new_tokens = 3
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plain = exported(model, tokens, tmp_path / "stock")
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert model.config.hidden_size == 16 and logits(model, tokens).isfinite().all()
    assert not list((tmp_path / "stock").glob("*.py"))
    assert "minislice" not in (tmp_path / "stock" / "config.json").read_text()
    assert (plain.config.model_type, plain.config.hidden_size, plain.config.head_dim) == ("phi", 13, 8)
    assert plain.generation_config.max_new_tokens == 3
    assert f"| parameters | {plain.num_parameters():,} |" in (tmp_path / "stock" / "README.md").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_in_float64_the_export_is_exact(name, tmp_path):
    model, tokens = stock_ready(RECIPES[name], dtype=torch.float64)
    assert exported(model, tokens, tmp_path / "stock", 1e-6).dtype == torch.float64  # rotary angles are float32


@pytest.mark.parametrize(
    ("place", "mistake"),
    [
        ("_stock_config", lambda right: lambda net, norm, width: right(net, norm, net.trained_width)),
        ("mean_zero_embedding", lambda right: lambda k: torch.eye(k, k + 1, dtype=torch.float64)),
        ("_fill_norm", lambda right: lambda to, net, scale, shift: right(to, net, torch.ones_like(scale), shift)),
    ],
)
def test_exporting_fails_on(place, mistake, tmp_path, monkeypatch):
    monkeypatch.setattr(stock, place, mistake(getattr(stock, place)))
    with pytest.raises((AssertionError, ValueError), match=r"logits differ|can't export"):
        exported(*stock_ready(RECIPES["phi"]), tmp_path / "stock")


@pytest.mark.parametrize(("name", "dtype"), [("llama", torch.float16), ("phi", torch.bfloat16)])
def test_half_precision_is_kept_in_an_export_of_a_folder(name, dtype, tmp_path):
    model, tokens = stock_ready(RECIPES[name], dtype=dtype)
    model.save_pretrained(tmp_path / "sliced")
    model, _ = minislice.load(tmp_path / "sliced")
    plain = exported(model, tokens, tmp_path / "stock", 20 * torch.finfo(dtype).eps)
    assert {parameter.dtype for parameter in plain.parameters()} == {dtype}


@pytest.mark.parametrize("name", ["llama-plain", "phi"])
def test_a_fitted_head_is_exported_as_the_matrix_that_it_computes(name, tmp_path):
    model, tokens = stock_ready(RECIPES[name])
    H = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    model.lm_head = FittedHead(network(model).embeddings[0], H=H, bias=model.lm_head.bias)
    exported(model, tokens, tmp_path / "stock")
    assert isinstance(model.lm_head, FittedHead)


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_a_model_that_is_fused_but_whole_is_exported_too(name, tmp_path):
    exported(minislice.rotate(RECIPES[name].model().float()), RECIPES[name].tokens(), tmp_path / "stock")


NARROW, WHOLE = {"width": 12}, {"width": None, "slicing": 0, "slice_head": False, "head": "own"}
DELETED = [
    ("llama-grouped", NARROW, {"neurons": 0.5}),
    ("phi-grouped", WHOLE, {"neurons": 0.3, "repair": True}),
    ("llama-grouped", WHOLE, {"drop": [2, 3]}),
    ("phi-grouped", NARROW, {"neurons": 0.5, "drop": [1]}),
]


@pytest.mark.parametrize(("name", "signal", "options"), DELETED)
def test_neurons_and_layers_that_are_deleted_are_in_the_exports_config(name, signal, options, tmp_path):
    model, tokens = stock_ready(RECIPES[name], **signal, **options)
    config = exported(model, tokens, tmp_path / "stock").config
    assert config.num_hidden_layers == (2 if "drop" in options else 3)
    assert {config.intermediate_size} == set(model.slicing.neurons)


@pytest.mark.parametrize(("family", "name"), [("mixtral", "intermediate_size"), ("qwen2_moe", "moe_intermediate_size")])
def test_the_experts_neurons_are_in_the_exports_config(family, name, tmp_path):
    recipe = FamilyRecipe(family, heads=4, head_dim=4, hidden=20)
    options = {"slice_embedding": True, "slice_head": True, "head": "own", "adapter": "none", "multiple": 4}
    model = minislice.slice_model(recipe.model().float(), recipe.tokens(), width=16, neurons=0.3, **options)
    plain = exported(model, recipe.tokens(), tmp_path / "stock")
    assert {getattr(plain.config, name)} == set(model.slicing.neurons)


@pytest.mark.parametrize(("family", "neurons"), [("llama", 0.5), ("phi", 0.0)])
def test_a_tied_head_beside_a_whole_signal_is_exported_tied(family, neurons, tmp_path):
    recipe = Recipe(family, eps=0.03)
    model, tokens = stock_ready(recipe, width=None, slicing=0, slice_head=False, neurons=neurons)
    assert model.slicing.options.head == "tied"
    plain = exported(model, tokens, tmp_path / "stock")
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    fewer = minislice.delete_neurons(recipe.model(), tokens, neurons=neurons)
    assert plain.num_parameters() == fewer.num_parameters()
    assert type(model.lm_head) is TiedHead


@pytest.mark.parametrize("k", [1, 7])
def test_layernorm_behind_the_embedding_is_rmsnorm(k):
    J = stock.mean_zero_embedding(k)
    torch.testing.assert_close(J @ J.T, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-14)
    assert J.shape == (k, k + 1) and J.sum(1).abs().max() < 1e-14
    D, eps = 2 * k, 0.1
    x = torch.randn(5, k, dtype=torch.float64, generator=torch.Generator().manual_seed(k))
    norm = nn.LayerNorm(k + 1, eps=eps * D / (k + 1)).double()
    nn.init.constant_(norm.weight, (D / (k + 1)) ** 0.5)
    torch.testing.assert_close(norm(x @ J) @ J.T, RMSNorm(D, eps)(x), rtol=1e-12, atol=1e-12)


# ---- what can't be exported says why, and what to slice instead ----


NONE_LIKE_IT = 'adapter="none" and slice_head=True'
REFUSED = [
    (Recipe("opt"), {}, "ties the width of its attention to the hidden size"),
    (RECIPES["llama"], {"adapter": "full"}, NONE_LIKE_IT),
    (RECIPES["phi"], {"adapter": "low-rank"}, NONE_LIKE_IT),
    (RECIPES["phi"], {"slice_head": False}, NONE_LIKE_IT),
    (Recipe("llama"), {"slice_head": False}, "a tied head, .* 20 wide.* gets weights of its own"),
    (RECIPES["llama"], {"width": [10, 12, 12, 12, 14]}, "one width"),
    (RECIPES["llama"], {"neurons": [8, 16]}, "MLPs have 8 to 16 neurons, and LlamaForCausalLM would have 16 in each"),
    (RECIPES["llama"], {"neurons": [0, 0]}, "MLPs have 0 to 0 neurons"),
    (RECIPES["llama"], {"drop": [1]}, r"blocks \[1\] are left out without the others .* leave whole layers"),
    (RECIPES["llama"], {"drop": [1, 2]}, r"blocks \[1, 2\] are left out"),
    (Recipe("llama", heads=4, hidden=20), {"width": 14}, "(?s)hidden size of 14; slice to another width .*multiple"),
    (Recipe("phi", option=True), {"width": 9}, "q_layernorm"),  # transformers makes it hidden_size / heads wide
]


@pytest.mark.parametrize(("recipe", "options", "message"), REFUSED)
def test_what_no_stock_architecture_is_is_refused_with_what_to_slice_instead(recipe, options, message, tmp_path):
    model, _ = stock_ready(recipe, **options)
    with pytest.raises(ValueError, match=message):
        minislice.export(model, tmp_path / "stock")
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_is_refused(tmp_path):
    for refused in (lambda model: minislice.export(model, tmp_path / "stock"), stock.stock_model):
        with pytest.raises(ValueError, match="isn't sliced"):
            refused(Recipe("llama").model())
