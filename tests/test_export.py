"""An exported model is an ordinary one: transformers alone loads it from its folder, and its logits are the same."""

import subprocess
import sys
import textwrap

import pytest
import torch
from family_models import FamilyRecipe
from models import Recipe
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import minislice
from minislice.architecture.blocks import RMSNorm
from minislice.architecture.heads import FittedHead, TiedHead
from minislice.architecture.network import network
from minislice.storage.stock import mean_zero_embedding, stock_model

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


@torch.no_grad()
def logits(model, tokens):
    return model(input_ids=tokens).logits


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def test_plain_transformers_computes_the_same_logits_and_generates(tmp_path):
    folders = []
    for name, recipe in RECIPES.items():
        model, tokens = stock_ready(recipe)
        folders.append(str(tmp_path / name))
        minislice.export(model, folders[-1])
        generated = model.generate(tokens[:2, :5], max_new_tokens=6, do_sample=False)
        torch.save({"tokens": tokens, "logits": logits(model, tokens), "generated": generated}, f"{folders[-1]}.pt")
    script = """
        import sys
        sys.modules["minislice"] = None  # importing it fails, installed or not
        import torch
        from transformers import AutoModelForCausalLM
        for folder in sys.argv[1:]:
            expected = torch.load(folder + ".pt")
            model = AutoModelForCausalLM.from_pretrained(folder)
            with torch.no_grad():
                logits = model(input_ids=expected["tokens"]).logits
            error = ((logits - expected["logits"]).norm() / expected["logits"].norm()).item()
            same = torch.equal(
                model.generate(expected["tokens"][:2, :5], max_new_tokens=6, do_sample=False), expected["generated"]
            )
            print(type(model).__module__, type(model).__name__, model.config.hidden_size, error, same)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), *folders]
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HF_HOME": str(tmp_path / "home")}
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == len(RECIPES)
    for line, recipe in zip(lines, RECIPES.values(), strict=True):
        module, name, width, error, same = line
        assert module.startswith("transformers.models.") and name in ("LlamaForCausalLM", "PhiForCausalLM")
        assert int(width) == (12 if recipe.family == "llama" else 13)
        assert float(error) < 1e-5 and same == "True"


def test_the_folder_of_an_export_has_no_code_and_no_trace_of_minislice(tmp_path):
    model, _ = stock_ready(RECIPES["phi"])
    minislice.export(model, tmp_path / "stock")
    assert not list((tmp_path / "stock").glob("*.py"))
    assert "minislice" not in (tmp_path / "stock" / "config.json").read_text()
    config = AutoConfig.from_pretrained(tmp_path / "stock")
    assert (config.model_type, config.hidden_size, config.head_dim) == ("phi", 13, 8)
    parameters = sum(tensor.numel() for tensor in load_file(tmp_path / "stock" / "model.safetensors").values())
    assert f"| parameters | {parameters:,} |" in (tmp_path / "stock" / "README.md").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_in_float64_the_export_is_exact(name, tmp_path):
    model, tokens = stock_ready(RECIPES[name], dtype=torch.float64)
    minislice.export(model, tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert stock.dtype == torch.float64
    assert relative_error(logits(stock, tokens), logits(model, tokens)) < 1e-6  # rotary angles are float32


@pytest.mark.parametrize(("name", "dtype"), [("llama", torch.float16), ("phi", torch.bfloat16)])
def test_half_precision_is_kept(name, dtype, tmp_path):
    model, tokens = stock_ready(RECIPES[name], dtype=dtype)
    minislice.export(model, tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert {parameter.dtype for parameter in stock.parameters()} == {dtype}
    assert relative_error(logits(stock, tokens), logits(model, tokens)) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_a_folder_is_exported_as_its_model_is(name, tmp_path):
    model, tokens = stock_ready(RECIPES[name])
    model.generation_config.max_new_tokens = 3
    model.save_pretrained(tmp_path / "sliced")
    minislice.export(minislice.load(tmp_path / "sliced")[0], tmp_path / "stock")
    stock, _ = minislice.load(tmp_path / "stock")
    assert relative_error(logits(stock, tokens), logits(model, tokens)) < 1e-5
    assert stock.generation_config.max_new_tokens == 3


def test_exporting_changes_nothing_in_the_model(tmp_path):
    model, tokens = stock_ready(RECIPES["phi"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    minislice.export(model, tmp_path / "stock")
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert model.config.hidden_size == 16 and logits(model, tokens).isfinite().all()


@pytest.mark.parametrize("name", ["llama-plain", "phi"])
def test_a_tied_head_is_exported_as_the_matrix_that_it_computes(name, tmp_path):
    model, tokens = stock_ready(RECIPES[name])
    net = network(model)
    H = torch.randn(12, 12, generator=torch.Generator().manual_seed(0))
    model.lm_head = FittedHead(net.embeddings[0], H, model.lm_head.bias)
    minislice.export(model, tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert relative_error(logits(stock, tokens), logits(model, tokens)) < 1e-5
    assert isinstance(model.lm_head, FittedHead)


@pytest.mark.parametrize("name", ["llama", "phi"])
def test_a_model_that_is_fused_but_whole_is_exported_too(name, tmp_path):
    model, tokens = minislice.rotate(RECIPES[name].model().float()), RECIPES[name].tokens()
    minislice.export(model, tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert relative_error(logits(stock, tokens), logits(model, tokens)) < 1e-5


DELETED = {
    "neurons": {"neurons": 0.5},
    "neurons, repaired": {"neurons": 0.3, "repair": True},
    "a layer": {"drop": {"llama-grouped": [2, 3], "phi-grouped": [1]}},
    "neurons and a layer": {"neurons": 0.5, "drop": {"llama-grouped": [4, 5], "phi-grouped": [2]}},
}


@pytest.mark.parametrize("signal", [{"width": 12}, {"width": None, "slicing": 0, "slice_head": False, "head": "own"}])
@pytest.mark.parametrize("deleted", DELETED)
@pytest.mark.parametrize("name", ["llama-grouped", "phi-grouped"])
def test_neurons_and_layers_that_are_deleted_are_in_the_exports_config(name, deleted, signal, tmp_path):
    options = {key: value[name] if key == "drop" else value for key, value in DELETED[deleted].items()}
    model, tokens = stock_ready(RECIPES[name], **signal, **options)
    minislice.export(model, tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(stock).__module__.startswith("transformers.models.")
    assert stock.config.num_hidden_layers == (2 if "drop" in options else 3)
    assert {stock.config.intermediate_size} == set(model.slicing.neurons)
    assert relative_error(logits(stock, tokens), logits(model, tokens)) < 1e-5


@pytest.mark.parametrize(("family", "name"), [("mixtral", "intermediate_size"), ("qwen2_moe", "moe_intermediate_size")])
def test_the_experts_neurons_are_in_the_exports_config(family, name, tmp_path):
    recipe = FamilyRecipe(family, heads=4, head_dim=4, hidden=20)
    options = {"slice_embedding": True, "slice_head": True, "head": "own", "adapter": "none", "multiple": 4}
    model = minislice.slice_model(recipe.model().float(), recipe.tokens(), width=16, neurons=0.3, **options)
    minislice.export(model, tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert {getattr(stock.config, name)} == set(model.slicing.neurons)
    assert relative_error(logits(stock, recipe.tokens()), logits(model, recipe.tokens())) < 1e-5


@pytest.mark.parametrize(("family", "neurons"), [("llama", 0.5), ("phi", 0.0)])
def test_a_tied_head_beside_a_whole_signal_is_exported_tied(family, neurons, tmp_path):
    recipe = Recipe(family, eps=0.03)
    model, tokens = stock_ready(recipe, width=None, slicing=0, slice_head=False, neurons=neurons)
    assert model.slicing.options.head == "tied"
    minislice.export(model, tmp_path / "stock")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert relative_error(logits(stock, tokens), logits(model, tokens)) < 1e-5
    assert stock.get_output_embeddings().weight is stock.get_input_embeddings().weight
    fewer = minislice.delete_neurons(recipe.model(), tokens, neurons=neurons)
    assert stock.num_parameters() == fewer.num_parameters()
    assert type(model.lm_head) is TiedHead


@pytest.mark.parametrize("k", [1, 7])
def test_layernorm_behind_the_embedding_is_rmsnorm(k):
    J = mean_zero_embedding(k)
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
    (Recipe("llama"), {"slice_head": False}, "a tied head, .* 20 wide.* gives the head weights of its own"),
    (Recipe("phi"), {"slice_head": False}, "a tied head, .* 16 wide.* gives the head weights of its own"),
    (RECIPES["llama"], {"width": [10, 12, 12, 12, 14]}, "one width"),
    (RECIPES["llama"], {"neurons": [8, 16]}, "MLPs have 8 to 16 neurons, and LlamaForCausalLM would have 16 in each"),
    (RECIPES["llama"], {"neurons": [0, 0]}, "MLPs have 0 neurons, and LlamaForCausalLM would have 40 in each"),
    (RECIPES["llama"], {"drop": [1]}, r"blocks \[1\] are left out without the others .* leave whole layers"),
    (RECIPES["llama"], {"drop": [1, 2]}, r"blocks \[1, 2\] are left out"),
    (Recipe("llama", heads=4, hidden=20), {"width": 14}, "hidden size of 14; slice to a width of 12 or 16"),
    (Recipe("phi", option=True), {"width": 9}, "q_layernorm"),  # transformers makes it hidden_size / heads wide
]


@pytest.mark.parametrize(("recipe", "options", "message"), REFUSED)
def test_what_no_stock_architecture_is_is_refused_with_what_to_slice_instead(recipe, options, message, tmp_path):
    model, _ = stock_ready(recipe, **options)
    with pytest.raises(ValueError, match=message):
        minislice.export(model, tmp_path / "stock")
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="isn't sliced"):
        minislice.export(Recipe("llama").model(), tmp_path / "stock")
    with pytest.raises(ValueError, match="isn't sliced"):
        stock_model(Recipe("llama").model())
