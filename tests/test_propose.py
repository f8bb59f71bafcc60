"""`propose` finds the table's entry on every family of the table, and the obstacle on every one that is refused."""

import dataclasses

import pytest
import torch
from commands import document
from models import FAMILIES, Recipe
from properties import logits, relative_error
from torch import nn

import minislice
from minislice.architecture.families import FAMILIES as TABLE
from minislice.architecture.families import REFUSED, find_family
from minislice.architecture.network import network
from minislice.measuring.propose import entry, propose
from minislice.teaching.small import small_model

NOT_SEEN = {"inner_width", "expert_width", "stock_norm", "obstacle", "dropout"}  # nothing in the tensors shows these
CASES = [(family, 0) for family in FAMILIES]  # and the variants that are other entries
CASES += [("falcon", 1), ("falcon", 2), ("falcon", 3), ("stablelm", 1), ("gpt_neox", 1), ("qwen2_moe", 1)]


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_the_entry_of_the_table_is_found(family, variant):
    recipe = Recipe(family, variant=variant, layers=2, heads=4, kv_heads=2, head_dim=4, hidden=20, eps=1e-4)
    found, expected = propose(recipe.model()), find_family(recipe.config())
    blocks, *others = [expected.blocks_of(recipe.config(), layer) for layer in range(2)]
    if blocks not in others:
        assert "layer 1 is made of other blocks than layer 0" in found.obstacle
        return
    expected = dataclasses.replace(expected, blocks=blocks)
    assert found.passed and TABLE[family] == find_family(recipe.config())  # the table is as it was
    for field in dataclasses.fields(expected):
        if field.name == "branch_scale" and expected.branch_scale and found.family.branch_scale is None:
            assert getattr(recipe.config(), expected.branch_scale) == 1
        elif (family, field.name) == ("gptj", "last_shaped_as"):
            assert found.family.last_shaped_as in (None, "drop")  # by the release of transformers
        elif field.name not in NOT_SEEN:
            assert getattr(found.family, field.name) == getattr(expected, field.name), field.name


NORM_AFTER, NO_NORM = "a norm with a scale stands after the branch", "reads the signal, and no norm stands before it"
REFUSALS = [
    ("gemma2", {}, (NORM_AFTER, "post_attention_layernorm", "post_feedforward_layernorm")),
    ("olmo2", {}, (NO_NORM, "q_proj")),
    ("electra", {}, ("not a sum of embeddings", "position_embeddings")),
    ("bloom", {"apply_residual_connection_post_layernorm": True}, ("carries the scaled output of h.0.post_",)),
    ("opt", {"_remove_final_layer_norm": True}, ("not a norm of what the last layer writes",)),
    ("nanochat", {}, ("norm stands after the embeddings and before the head",)),
    ("prophetnet", {}, ("not a sum of embeddings", "word_embeddings")),
    ("phimoe", {}, ("ends in an error, ValueError: can't fold the shift of a norm into experts",)),
]


@pytest.mark.parametrize(("model_type", "fields", "reasons"), REFUSALS)
def test_the_obstacle_of_a_refused_family_or_configuration_is_named(model_type, fields, reasons):
    model = small_model(model_type, **fields)
    with pytest.raises(ValueError, match=r"does not commute with a rotation|can't slice this|no entry of the table"):
        minislice.fuse(model)
    proposal = propose(model)
    assert proposal.family is None and not proposal.passed
    for fragment in reasons:
        assert fragment in proposal.obstacle


def test_a_number_on_the_branches_that_the_config_does_not_say_is_an_obstacle():
    model = small_model("granite", residual_multiplier=0.37)
    model.config.residual_multiplier = 1.0
    assert "multiplied by 0.37" in propose(model).obstacle
    for number in (80**-0.5, float(model.config.num_hidden_layers)):
        model = small_model("granite", residual_multiplier=number)
        assert propose(model).family.branch_scale == "residual_multiplier"


def test_what_is_no_model_is_refused():
    with pytest.raises(ValueError, match="expected a transformers causal language model, got str"):
        propose("gpt2")


def test_a_layer_and_its_attention_may_return_a_tensor_alone(monkeypatch):
    assert propose(small_model("gpt_bigcode")).passed
    model, ids = minislice.fuse(small_model("mistral")), torch.arange(40).view(2, 20)
    expected = logits(model, ids)
    for block in network(model).blocks[::2]:
        right = block.attention.forward
        monkeypatch.setattr(block.attention, "forward", lambda right=right, **arguments: right(**arguments)[0])
    assert torch.equal(logits(model, ids), expected)
    assert model(input_ids=ids, output_attentions=True).attentions == ()


def test_an_embedding_that_also_scales_is_not_tied_where_it_would_have_to_subtract_the_mean(monkeypatch):
    model, ids = small_model("biogpt"), torch.arange(40).view(2, 20)
    monkeypatch.setitem(TABLE, "biogpt", propose(model).family)
    expected = logits(model, ids)
    assert minislice.slice_model(model, ids, slicing=0).slicing.options.head == "own"
    assert relative_error(logits(model, ids), expected) < 1e-10


def test_what_is_printed_registers_the_family(monkeypatch):
    model = small_model("stablelm", use_parallel_residual=True)
    found = propose(model)
    monkeypatch.delitem(TABLE, "stablelm")
    with pytest.raises(ValueError, match="no entry of the table describes it"):
        minislice.fuse(model)
    names = {name: getattr(minislice.families, name) for name in ("Family", "BlockSpec", "NormKind", "StockNorm")}
    exec(entry("stablelm", found.family), {"minislice": minislice, **names})
    ids = torch.arange(40).view(2, 20)
    assert minislice.verify(model, ids, dtypes=["float64"]).passed
    minislice.slice_model(model, ids, width=16)
    assert entry("stablelm", found.family) in str(found) and len(str(found).splitlines()) < 40


def test_the_commands(tmp_path, run):
    for model_type in ("mistral", "gemma2"):
        small_model(model_type).config.save_pretrained(tmp_path / model_type)  # weights don't matter
    status, printed, _ = run("propose", tmp_path / "mistral")
    assert status == 0 and "post_attention_layernorm" in printed
    status, printed, _ = run("propose", tmp_path / "gemma2", "--json")
    assert status == 1 and "stands after the branch" in document(printed)["obstacle"]
    printed = " ".join(run("families")[1].split())
    assert all(name in printed for name in (*TABLE, *REFUSED)) and "does not commute with a rotation" in printed
    told = document(run("families", "--json")[1])
    assert told["supported"].keys() == TABLE.keys() and told["refused"] == REFUSED


def mistral(w_in):
    """The table's entry, with other readers in the MLP."""
    attention, mlp = TABLE["mistral"].blocks
    return dataclasses.replace(TABLE["mistral"], blocks=(attention, dataclasses.replace(mlp, w_in=w_in)))


MISFITS = {
    "a name": ("mistral", mistral(("mlp.gate",)), "names mlp.gate, and MistralDecoderLayer has no such"),
    "another width": ("mistral", mistral(("mlp.down_proj",)), "signal, which is 32 wide, but its in_features are 48"),
    "a norm too many": ("gemma2", TABLE["gemma"], r"a layer of this .gemma2. model has pre_feedforward_layernorm\.wei"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_an_entry_that_does_not_fit_is_told(case, monkeypatch):
    family, entry, message = MISFITS[case]
    monkeypatch.setitem(TABLE, family, entry)
    with pytest.raises(ValueError, match=message):
        minislice.fuse(small_model(family))


def test_a_proposal_that_misses_a_reader_does_not_pass():
    """No norm stands before that reader, so that nothing but the verification sees it."""
    model = small_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.side = nn.Linear(32, 32, bias=False).double()
    mlp.register_forward_hook(lambda module, inputs, output: output + module.side(inputs[0].tanh()))
    assert not propose(model).passed
