"""What can't be done is a ValueError that names what is wrong, and leaves the model as it was."""

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import properties
import pytest
import torch
from models import FAMILIES, VOCABULARY, Recipe
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    BigBirdConfig,
    LlamaForSequenceClassification,
    OPTConfig,
)

from minislice import (
    compare,
    compress,
    delete_layers,
    delete_neurons,
    fuse,
    own_text,
    perplexity,
    plan_compression,
    propose,
    recover,
    rotate,
    slice_model,
    verify,
    zero_shot,
)
from minislice.architecture.network import network
from minislice.beyond.allocation import neurons_for
from minislice.corpus.text import sample
from minislice.measuring.timing import inference_cost
from minislice.recovery.options import RecoveryOptions
from minislice.teaching.small import small_model

# D = 16 and 2 layers: OPT and LLaMA have 5 boundaries, Phi has 3.
RECIPES = {family: Recipe(family, hidden=16) for family in FAMILIES}
OPT, LLAMA, PHI = (RECIPES[family] for family in FAMILIES)
IDS = OPT.tokens()
ONES = torch.ones(16, 16).double()
NAN, INF = float("nan"), float("inf")


def assert_raises_and_leaves_alone(model, action, *fragments):
    """A ValueError with every fragment in its message; module names, weights and logits stay what they were."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = properties.logits(model, IDS)
    with pytest.raises(ValueError) as error:
        action(model)
    for fragment in fragments:
        assert str(fragment) in str(error.value)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(properties.logits(model, IDS), before)


done = {
    "fused": lambda model: fuse(model),
    "rotated": lambda model: rotate(model, seed=1),
    "rotated per block": lambda model: rotate(model, per_block=True, seed=1),
    "sliced": lambda model: slice_model(model, IDS, width=5, head="own"),
    "sliced whole": lambda model: slice_model(model, IDS, width=5, slice_head=True, adapter="none"),
}


@pytest.mark.parametrize(
    ("first", "then", "fragments"),
    [
        ("fused", fuse, ["already fused"]),
        ("sliced", fuse, ["already fused"]),
        ("rotated per block", rotate, ["can't rotate", "rotated per block already", 16]),
        ("rotated per block", done["sliced"], ["can't slice", "rotated per block already", 16]),
        ("sliced", rotate, ["can't rotate", "sliced already", "[5, 5"]),
        ("sliced", done["sliced"], ["can't slice", "sliced already", "[5, 5", "trained model"]),
        ("sliced whole", done["sliced"], ["can't slice", "sliced already", "5, 5]"]),
        ("sliced whole", done["rotated per block"], ["can't rotate", "sliced already"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_order_is_refused(first, then, fragments):
    assert_raises_and_leaves_alone(done[first](LLAMA.model()), then, *fragments)


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        ({"signal": "norm"}, ["signal", "normalized, raw", "'norm'"]),
        ({"adapter": "half"}, ["adapter", "full, low-rank, none", "'half'"]),
        ({"slicing": 0.25, "width": 8}, ["one of slicing, width and discard"]),
        ({"width": 8, "discard": 0.1}, ["one of slicing, width and discard"]),
        ({"slicing": 0.9}, ["0.9", "16", "multiple of 8", "`width`"]),
        ({"adapter": "low-rank", "tolerance": 1.5}, ["tolerance", "1.5"]),
        ({"width": 0}, ["between 1 and", "16", "0"]),
        ({"width": 17}, ["between 1 and", "16", "17"]),
        ({"width": [8, 17, 8]}, ["between 1 and", "16", "17"]),
        ({"width": [8, 0, 8]}, ["between 1 and", "16", "0"]),
        ({"width": []}, ["0 widths", "boundaries"]),
        ({"width": [8, 8, 8, 8]}, ["4 widths", "3 boundaries"]),
        ({"width": [8, 8, 4], "adapter": "none"}, ["never shrinks"]),
        ({"width": [8, 8, 16], "slice_embedding": False}, ["first boundary whole", "give 16 there"]),
        ({"head": "shared"}, ["head", "own, tied, fitted", "'shared'"]),
        ({"discard": 0.1, "adapter": "none"}, ["adapter='none'", "width"]),
    ],
    ids=lambda value: " ".join(f"{name}={option}" for name, option in value.items()) if isinstance(value, dict) else "",
)
def test_options_that_make_no_sense_are_refused(options, fragments):
    assert_raises_and_leaves_alone(PHI.model(), lambda model: slice_model(model, IDS, **options), *fragments)


def test_a_tie_that_cannot_be_kept_is_refused():
    tied, own, kept = PHI.model(), replace(PHI, tied=False).model(), fuse(PHI.model(), keep_tie=True)
    for model, options, fragments in [
        (own, {}, ["head='tied'", "this one's doesn't"]),
        (fuse(PHI.model()), {}, ["needs the trained model", "fusion"]),
        (kept, {"head": "own"}, ["keep_tie", "head='tied'"]),
        (kept, {"head": None, "slice_head": True}, ["keep_tie", "slice neither"]),
        (tied, {"slice_embedding": True}, ["keeps the first boundary whole", "slice_embedding"]),
        (tied, {"slice_head": True}, ["keeps the last boundary whole", "slice_head"]),
        (tied, {"width": [8, 8, 8]}, ["give 16 at both ends"]),
    ]:
        action = lambda model, options=options: slice_model(model, IDS, **{"head": "tied", **options})  # noqa: E731
        assert_raises_and_leaves_alone(model, action, *fragments)


def test_a_network_whose_tie_was_kept_is_not_rotated():
    model = fuse(LLAMA.model(), keep_tie=True)
    properties.assert_same_logits(model, LLAMA.model(), LLAMA, 1e-6)
    assert_raises_and_leaves_alone(model, rotate, "can't rotate", "keep_tie")


too_high, negative = IDS.clone(), IDS.clone()
too_high[1, 2], negative[0, 0] = VOCABULARY, -1


MEASURES = {"slice_model": slice_model, "perplexity": perplexity, "verify": verify}
ROWS, ONES_LIKE, ZEROS_LIKE = IDS.tolist(), torch.ones_like(IDS), torch.zeros_like(IDS)
BAD_TOKENS = {
    "an id too high": ([too_high], [VOCABULARY, f"0 to {VOCABULARY - 1}", "tokenizer"]),
    "an id below 0": ([negative], [-1, f"0 to {VOCABULARY - 1}"]),
    "ids float": ([IDS.double()], ["ints", "(4, 30)", "float64"]),
    "ids bool": ([IDS.bool()], ["ints", "(4, 30)", "bool"]),
    "ids 3-dimensional": ([IDS[None]], ["[sequences, tokens]", "(1, 4, 30)"]),
    "ids 0-dimensional": ([torch.tensor(5)], ["[sequences, tokens]", "()"]),
    "no batch": ([[]], ["no tokens"]),
    "no sequence": ([IDS[:0]], ["no tokens", "(0, 30)"]),
    "a sequence of nothing": ([IDS[0, :0]], ["no tokens", "0"]),
    "an empty batch": ([[IDS, IDS[:0]]], ["no tokens"]),
    "nothing": ([None], ["tokens must be", "tensor", "got NoneType"]),
    "nothing in a list": ([[IDS, None]], ["tokens must be", "got NoneType"]),
    "a number": ([5], ["tokens must be", "got int"]),
    "text": (["a text"], ["got str", "tokenizer("]),
    "texts": ([["a text", "another"]], ["got str", "tokenizer("]),
    "rows": ([ROWS], ["got list", "torch.tensor(rows)"]),
    "a row": ([ROWS[0]], ["got int", "torch.tensor(rows)"]),
    "ragged rows": ([[ROWS[0], ROWS[1][:7]]], ["got list", "different lengths", "tokenizer.pad"]),
    "an array": ([IDS.numpy()], ["got ndarray", "torch.tensor(rows)"]),
    "other entries": ([{"labels": IDS, "ids": IDS}], ["'input_ids'", "labels, ids"]),
    "no entries": ([{}], ["'input_ids'", "none"]),
    "other entries in the second batch": ([[{"input_ids": IDS}, {"labels": IDS}]], ["'input_ids'", "labels"]),
    "rows in a dict": ([{"input_ids": ROWS}], ["tokens must be", "got list", 'return_tensors="pt"']),
    "mask too short": ([IDS, torch.ones(4, 29).long()], ["mask", "(4, 29)", "(4, 30)"]),
    "mask of one row": ([IDS, torch.ones(30).long()], ["mask", "(30,)", "(4, 30)"]),
    "mask 3-dimensional": ([IDS, torch.ones(2, 2, 30)], ["mask", "(2, 2, 30)", "(4, 30)"]),
    "one mask of two": ([[IDS, IDS], [ONES_LIKE]], ["2 batches", "1 attention mask"]),
    "a mask for two": ([[IDS, IDS], ONES_LIKE], ["2 batches", "1 attention mask"]),
    "mask a number": ([IDS, 5], ["attention mask must be", "got int"]),
    "mask rows": ([IDS, [ROWS]], ["attention mask must be", "got list"]),
    "mask rows in a dict": ([{"input_ids": IDS, "attention_mask": ROWS}], ["attention mask must be", "got list"]),
    "mask a dict": ([IDS, {"attention_mask": ONES_LIKE}], ["attention mask must be", "got dict"]),
    "mask of scores": ([IDS, torch.zeros(4, 30).index_fill(1, torch.tensor([0]), -INF)], ["1 for a token", "0"]),
    "mask NaN": ([IDS, torch.full((4, 30), NAN)], ["mask", "1 for a token", "0"]),
    "all padding": ([IDS, ZEROS_LIKE], ["nothing to calibrate on", "0 at every token"]),
    "all padding in batches": ([[IDS, IDS], [ZEROS_LIKE] * 2], ["nothing to calibrate on"]),
    "all padding in a dict": ([{"input_ids": IDS, "attention_mask": ZEROS_LIKE.bool()}], ["nothing to calibrate on"]),
}


@pytest.fixture
def unchecked(monkeypatch):
    """As a user calls: the annotations, which only tests check, would refuse what has the wrong type."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD_TOKENS)
def test_what_is_no_tokens_is_refused_by_one_clear_error(case):
    arguments, fragments = BAD_TOKENS[case]
    for measure in MEASURES.values():
        action = lambda model, measure=measure: measure(model, *arguments)  # noqa: E731
        assert_raises_and_leaves_alone(OPT.model(), action, *fragments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("model", [None, 5, "mini-opt", [IDS]], ids=["nothing", "a number", "a name", "a list"])
def test_what_is_no_model_is_refused_by_one_clear_error(measure, model):
    with pytest.raises(ValueError, match=f"transformers causal language model, got {type(model).__name__}"):
        MEASURES[measure](model, IDS)


WRONG = {
    "count": ["8", None, 2.5, 0, -1, True, NAN, INF, 10**30, [], b"8", torch.ones(2)],
    "count or None": ["8", 2.5, 0, -1, True, NAN, INF, 10**30, []],
    "seed": ["8", None, 2.5, -1, True, NAN, 2**32, []],
    "fraction": ["0.5", -0.1, 1.0, 2, True, NAN, -INF, {}, torch.ones(2)],  # 0 <= x < 1
    "share": ["0.5", None, 0, -0.1, 1.5, True, NAN, INF, []],  # 0 < x <= 1
    "positive": ["0.5", None, 0, -0.1, True, NAN, INF, []],
    "flag": ["no", None, 1, 0.0, [], torch.ones(2)],
    "name": [5, None, "no such", [], ["full"]],
    "names": [None, 5, b"x", [5], [None], torch.tensor(3)],
    "ints": [None, 3, 2.5, "12", [1.5], ["a"], [None], torch.tensor(3)],
    "shares": [None, 0.5, "x", [], [1.5], [0], ["a"], [NAN], torch.tensor(1.0)],
    "mapping": [5, "x", ["a"], {"a": 5}],
}
CHOICES = dict.fromkeys(("signal", "adapter", "basis", "orientation", "pca_dtype"), "name")
SLICING = {"slicing": "fraction", "discard": "fraction", "multiple": "count", "drop": "ints", "repair": "flag"}
SLICING |= {"reconstruct": "flag", "fisher": "flag"}
TRAINING = dict.fromkeys(("rank", "accumulation", "every", "patience"), "count")
TRAINING |= dict.fromkeys(("alpha", "learning_rate", "epochs"), "positive")
TRAINING |= {"dropout": "fraction", "held_out": "fraction", "steps": "count or None", "train_adapters": "flag"}
BATCH, SEED, LIMIT = {"batch_size": "count"}, {"seed": "seed"}, {"limit": "count or None"}
COUNTS = dict.fromkeys(("prompt", "length", "rounds"), "count")


def sampled(model, **options):
    return sample(IDS.flatten(), **{"samples": 1, "seqlen": 4, **options})


OPTIONS = [  # a function, what stands beside the model, and what kind of value each option takes
    (fuse, (), {"keep_tie": "flag"}),
    (rotate, (), {"per_block": "flag", **SEED}),
    (slice_model, (IDS,), {**SLICING, **CHOICES, "slice_head": "flag", **SEED, **BATCH}),
    (delete_neurons, (IDS,), {"neurons": "fraction", "multiple": "count", "repair": "flag", **BATCH}),
    (partial(delete_layers, layers=1), (IDS,), {"known": "ints", **BATCH}),
    (delete_layers, (IDS,), {"size": "share"}),
    (plan_compression, (IDS,), {"size": "share", "widths": "shares", "drop": "flag", "multiple": "count", **BATCH}),
    (compress, (IDS,), {"size": "share", "multiple": "count", **BATCH}),
    (partial(neurons_for, size=0.9), (), {"size": "share", "multiple": "count"}),
    (perplexity, (IDS,), BATCH),
    (verify, (IDS,), {"dtypes": "names", **SEED, **BATCH}),
    (compare, (IDS, IDS), {"sizes": "shares", "variants": "mapping", "tasks": "names", **LIMIT}),
    (zero_shot, (object(),), {"tasks": "names", **LIMIT, **BATCH}),
    (propose, (), SEED),
    (own_text, (2, 4), {"vocabulary": "count or None", **SEED, **BATCH}),
    (recover, (IDS,), {**TRAINING, **SEED, **BATCH}),
    (inference_cost, (LLAMA.model(),), {**COUNTS, "batch_size": "count or None"}),
    (sampled, (), {"samples": "count", "seqlen": "count", **SEED}),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("function", "beside", "kinds"), OPTIONS)
def test_an_option_out_of_its_range_is_refused_by_its_name(function, beside, kinds):
    model = done["sliced"](LLAMA.model()) if function is recover else LLAMA.model()
    for option, kind in kinds.items():
        for value in WRONG[kind]:
            if option != "widths" or value is not None:  # the default
                with pytest.raises(ValueError, match=option):
                    function(model, *beside, **{option: value})


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_numbers():
    options = RecoveryOptions(rank=np.int64(4), alpha=np.float32(2), seed=np.uint8(3))
    assert json.loads(json.dumps(vars(options))) == vars(RecoveryOptions(rank=4, alpha=2, seed=3))
    slice_model(LLAMA.model(), IDS, width=np.int64(8), seed=np.int32(1), drop=np.array([1]), batch_size=np.int64(2))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_row_or_a_batch_of_padding_alone_is_fine_among_others(measure):
    mask = torch.ones_like(IDS)
    mask[:2] = 0  # the first batch of two
    MEASURES[measure](OPT.model(), IDS, mask, batch_size=2)


@pytest.mark.parametrize("measure", [slice_model, perplexity], ids=["slice_model", "perplexity"])
def test_a_sequence_longer_than_the_table_of_positions_is_refused(measure):
    long = torch.ones(1, 65).long()
    assert_raises_and_leaves_alone(OPT.model(), lambda model: measure(model, long), "65", "64 positions")
    measure(LLAMA.model(), torch.arange(1, 66)[None])  # a rotary embedding has no table that ends


@pytest.mark.parametrize("arguments", [[IDS[:, :1]], [IDS, torch.zeros_like(IDS)]], ids=["one token", "padding"])
def test_nothing_to_predict_is_refused(arguments):
    assert_raises_and_leaves_alone(OPT.model(), lambda model: perplexity(model, *arguments), "nothing to predict")


@pytest.mark.parametrize(
    ("rotation", "fragments"),
    [
        (torch.eye(15).double(), ["16 x 16", "(15, 15)"]),
        (ONES, ["orthogonal"]),
        (torch.full_like(ONES, torch.nan), ["orthogonal"]),
        ([torch.eye(16).double()] * 4, ["4 rotations", "boundaries"]),
        ([], ["0 rotations", "boundaries"]),
    ],
    ids=["too small", "not orthogonal", "NaN", "too many", "none"],
)
def test_rotations_that_do_not_fit_are_refused(rotation, fragments):
    assert_raises_and_leaves_alone(LLAMA.model(), lambda model: rotate(model, rotation), *fragments)


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def _opt(**differences):
    config = OPTConfig(**{**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, **differences})
    return AutoModelForCausalLM.from_config(config)


class PretendQuantized(nn.Linear):
    """Stands for the linears of quantization libraries and of PEFT, which are not plain nn.Linears."""


def _quantized():
    model = LLAMA.model()
    layer = model.model.layers[1].mlp
    layer.down_proj = PretendQuantized(layer.down_proj.in_features, layer.down_proj.out_features)
    return model.double()


@pytest.mark.parametrize(
    ("build", "fragments"),
    [
        (
            lambda: AutoModelForCausalLM.from_config(BigBirdConfig(**SMALL, is_decoder=True)),
            ["'big_bird'", "minislice propose", "minislice families"],
        ),
        (lambda: BertModel(BertConfig(**SMALL)), ["'bert'", "minislice families"]),
        (lambda: _opt(do_layer_norm_before=False), ["post-norm", "opt-350m"]),
        (lambda: _opt(word_embed_proj_dim=8), ["8", "16", "projected", "opt-350m"]),
        (lambda: _opt(_remove_final_layer_norm=True), ["no final norm"]),
        (lambda: small_model("bloom", slow_but_exact=True, pretraining_tp=2), ["in parts", "slow_but_exact=False"]),
        (lambda: LLAMA.model().model, ["LlamaModel", "head", "AutoModelForCausalLM"]),
        (lambda: LlamaForSequenceClassification(LLAMA.model().config), ["head", "AutoModelForCausalLM"]),
        (_quantized, ["mlp.down_proj", "PretendQuantized", "quantization"]),
    ],
    ids=["unknown", "encoder", "post-norm", "projected", "no final norm", "slow", "no head", "classifier", "quantized"],
)
def test_models_that_cannot_be_sliced_are_refused(build, fragments):
    model = build().eval()
    weights = copy.deepcopy(model.state_dict())
    for action in (fuse, rotate, lambda model: slice_model(model, IDS, width=4)):
        with pytest.raises(ValueError) as error:
            action(model)
        assert all(fragment in str(error.value) for fragment in fragments), error
        assert len(str(error.value)) < 500 and "gpt_neox" not in str(error.value)  # the reason, not the list
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        model(input_ids=IDS)  # it still runs


@pytest.mark.parametrize(
    ("family", "value", "signal"),
    [("opt", torch.nan, "normalized"), ("llama", torch.inf, "raw"), ("phi", torch.inf, "normalized")],
)
def test_a_broken_embedding_is_named_by_its_sequence(family, value, signal):
    """One token is broken; the first sequence that has it is the third of the second batch."""
    model, token = RECIPES[family].model(), VOCABULARY - 1
    ids = IDS.masked_fill(IDS.eq(token), 1)
    ids[2:, 7] = token
    model.get_input_embeddings().weight.data[token] = value
    with pytest.raises(ValueError, match=r"embeddings .* calibration sequence 2\b"):
        slice_model(model, ids, width=5, signal=signal, batch_size=2)


@pytest.mark.parametrize(
    ("family", "head", "row"),
    [
        *(("opt", "own", "a head's"), ("phi", "own", "an unused token's")),
        *(("llama", "fitted", "an unused token's"), ("opt", "tied", "an unused token's")),
    ],
)
def test_a_broken_weight_that_no_calibration_token_meets_is_named(family, head, row):
    model = replace(RECIPES[family], tied=head != "own").model()
    ids = IDS.masked_fill(IDS.eq(VOCABULARY - 1), 1)
    table = model.lm_head if row == "a head's" else model.get_input_embeddings()
    table.weight.data[VOCABULARY - 1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"(embed_tokens|lm_head)\.weight has a NaN or an infinity; check the weights"):
        slice_model(model, ids, width=None if head == "tied" else 5, head=head)


@pytest.mark.parametrize(
    ("family", "name", "block"),
    [
        ("opt", "model.decoder.layers.0.fc2", 1),
        ("llama", "model.layers.1.mlp.down_proj", 3),
        ("phi", "model.layers.1.mlp.fc2", 1),
    ],
)
def test_a_broken_weight_is_named_by_its_block(family, name, block):
    model = RECIPES[family].model()
    model.get_submodule(name).weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=rf"block {block} .* calibration sequence 0\b"):
        slice_model(model, IDS, width=5, drop=[2] if family == "llama" else [])  # all blocks are counted


@pytest.mark.parametrize(("value", "repair"), [(torch.nan, False), (torch.inf, True)])
def test_a_broken_weight_is_named_by_its_layer_where_w_out_is_solved_for(value, repair):
    """What the second MLP of three writes: before it all is well, behind it nothing is."""
    for shrink in (delete_neurons, partial(slice_model, slicing=0)):
        model = replace(LLAMA, layers=3).model()
        mlp = [block.mlp_linears for block in network(model).blocks if block.neurons][1]
        mlp.writer.weight.data[0, 0] = value
        with pytest.raises(ValueError, match=r"behind a block of layer 1 .* calibration sequence 0\b"):
            shrink(model, IDS, neurons=0.5, repair=repair)
