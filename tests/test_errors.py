"""What can't be done is a ValueError that names what is wrong, and leaves the model as it was."""

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import properties
import pytest
import torch
import transformers
from models import FAMILIES, VOCABULARY, Recipe
from torch import nn

import minislice
from minislice import fuse, perplexity, rotate, slice_model, verify
from minislice.beyond.allocation import neurons_for
from minislice.corpus.text import sample
from minislice.measuring.timing import inference_cost
from minislice.recovery.options import RecoveryOptions
from minislice.teaching.small import small_model

# D = 16 and 2 layers: OPT and LLaMA have 5 boundaries, Phi has 3.
RECIPES = {family: Recipe(family, hidden=16) for family in FAMILIES}
OPT, LLAMA, PHI = (RECIPES[family] for family in FAMILIES)
IDS = OPT.tokens()
EYE = torch.eye(16).double()
NAN, INF = float("nan"), float("inf")


def assert_raises_and_leaves_alone(model, action, *fragments):
    """A ValueError with every fragment in its message; weights and logits stay what they were."""
    weights = copy.deepcopy(model.state_dict())
    before = properties.logits(model, IDS)
    with pytest.raises(ValueError) as error:
        action(model)
    for fragment in fragments:
        assert str(fragment) in str(error.value)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(properties.logits(model, IDS), before)


def slicing(**options):
    return lambda model: slice_model(model, IDS, **options)


def made(recipe, *steps):
    """A model after some steps; made when it is needed."""

    def make():
        model = recipe.model()
        for step in steps:
            step(model)
        return model

    return make


SLICED, WHOLE = slicing(width=5, head="own"), slicing(width=5, slice_head=True, adapter="none")
PER_BLOCK, KEPT, TIED = partial(rotate, per_block=True), partial(fuse, keep_tie=True), partial(slicing, head="tied")
LONG = torch.ones(1, 65).long()
REFUSED = {  # a model, what is done to it, and what the error says
    "fused": (made(LLAMA, fuse), fuse, "already fused"),
    "sliced": (made(LLAMA, SLICED), fuse, "already fused"),
    "rotated per block": (made(LLAMA, PER_BLOCK), rotate, "can't rotate", "rotated per block already", 16),
    "rotated, then sliced": (made(LLAMA, PER_BLOCK), SLICED, "can't slice", "rotated per block already", 16),
    "sliced, then rotated": (made(LLAMA, SLICED), rotate, "can't rotate", "sliced already", "[5, 5"),
    "sliced twice": (made(LLAMA, SLICED), SLICED, "can't slice", "sliced already", "[5, 5", "trained model"),
    "sliced whole": (made(LLAMA, WHOLE), PER_BLOCK, "can't rotate", "sliced already"),
    "tie kept": (made(LLAMA, KEPT), rotate, "can't rotate", "keep_tie"),
    "small rotation": (made(LLAMA), partial(rotate, rotation=EYE[:15, :15]), "16 x 16", "(15, 15)"),
    "no rotation": (made(LLAMA), partial(rotate, rotation=EYE + 1), "orthogonal"),
    "rotation NaN": (made(LLAMA), partial(rotate, rotation=EYE * NAN), "orthogonal"),
    "many rotations": (made(LLAMA), partial(rotate, rotation=[EYE] * 4), "4 rotations", "boundaries"),
    "signal": (made(PHI), slicing(signal="norm"), "signal", "normalized, raw", "'norm'"),
    "slicing and width": (made(PHI), slicing(slicing=0.25, width=8), "one of slicing, width and discard"),
    "nothing left": (made(PHI), slicing(slicing=0.9), "0.9", "16", "multiple of 8", "`width`"),
    "tolerance": (made(PHI), slicing(tolerance=1.5), "tolerance", "1.5"),
    "no width": (made(PHI), slicing(width=0), "between 1 and", "16", "0"),
    "large width": (made(PHI), slicing(width=[8, 17, 8]), "between 1 and", "16", "17"),
    "no widths": (made(PHI), slicing(width=[]), "0 widths", "3 boundaries"),
    "shrinks": (made(PHI), slicing(width=[8, 8, 4], adapter="none"), "never shrinks"),
    "spectrum": (made(PHI), slicing(discard=0.1, adapter="none"), "adapter='none'", "width"),
    "embedding": (made(PHI), slicing(width=[8, 8, 16], slice_embedding=False), "first boundary whole", "give 16 there"),
    "no tie": (made(replace(PHI, tied=False)), TIED(), "head='tied'", "this one's doesn't"),
    "fused tie": (made(PHI, fuse), TIED(), "needs the trained model", "fusion"),
    "kept, own": (made(PHI, KEPT), slicing(head="own"), "keep_tie", "head='tied'"),
    "kept, sliced": (made(PHI, KEPT), slicing(slice_head=True), "keep_tie", "slice neither"),
    "tied, first": (made(PHI), TIED(slice_embedding=True), "keeps the first boundary whole", "slice_embedding"),
    "tied, last": (made(PHI), TIED(slice_head=True), "keeps the last boundary whole", "slice_head"),
    "tied, widths": (made(PHI), TIED(width=[8, 8, 8]), "give 16 at both ends"),
    "long, sliced": (made(OPT), lambda model: slice_model(model, LONG), "65", "64 positions"),
    "long, measured": (made(OPT), lambda model: perplexity(model, LONG), "65", "64 positions"),
    "one token": (made(OPT), lambda model: perplexity(model, IDS[:, :1]), "nothing to predict"),
    "padding": (made(OPT), lambda model: perplexity(model, IDS, 0 * IDS), "nothing to predict"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_done_is_refused_and_leaves_the_model_alone(case):
    make, action, *fragments = REFUSED[case]
    assert_raises_and_leaves_alone(make(), action, *fragments)


def test_what_looks_like_it_is_fine():
    perplexity(LLAMA.model(), torch.arange(1, 66)[None])  # a rotary embedding has no table that ends
    properties.assert_same_logits(fuse(LLAMA.model(), keep_tie=True), LLAMA.model(), LLAMA, 1e-6)
    mask = torch.ones_like(IDS)
    mask[:2] = 0  # the first batch of two
    for measure in MEASURES.values():
        measure(OPT.model(), IDS, mask, batch_size=2)


MEASURES = {"slice_model": slice_model, "perplexity": perplexity, "verify": verify}
ROWS, ONES = IDS.tolist(), torch.ones_like(IDS)
BAD_TOKENS = {
    "an id too high": ([IDS.masked_fill(IDS.eq(IDS[2, 2]), VOCABULARY)], [f"0 to {VOCABULARY - 1}", "tokenizer"]),
    "an id below 0": ([IDS.masked_fill(IDS.eq(IDS[2, 2]), -1)], [-1, f"0 to {VOCABULARY - 1}"]),
    "ids float": ([IDS.double()], ["ints", "(4, 30)", "float64"]),
    "ids 3-dimensional": ([IDS[None]], ["[sequences, tokens]", "(1, 4, 30)"]),
    "no batch": ([[]], ["no tokens"]),
    "no sequence": ([IDS[:0]], ["no tokens", "(0, 30)"]),
    "an empty batch": ([[IDS, IDS[:0]]], ["no tokens"]),
    "nothing in a list": ([[IDS, None]], ["tokens must be", "got NoneType"]),
    "text": (["a text"], ["got str", "tokenizer("]),
    "rows": ([ROWS], ["got list", "torch.tensor(rows)"]),
    "ragged rows": ([[ROWS[0], ROWS[1][:7]]], ["got list", "different lengths", "tokenizer.pad"]),
    "an array": ([IDS.numpy()], ["got ndarray", "torch.tensor(rows)"]),
    "other entries": ([[{"input_ids": IDS}, {"labels": IDS, "ids": IDS}]], ["'input_ids'", "labels, ids"]),
    "rows in a dict": ([{"input_ids": ROWS}], ["tokens must be", "got list", 'return_tensors="pt"']),
    "mask too short": ([IDS, torch.ones(4, 29).long()], ["mask", "(4, 29)", "(4, 30)"]),
    "one mask of two": ([[IDS, IDS], ONES], ["2 batches", "1 attention mask"]),
    "mask a number": ([IDS, 5], ["attention mask must be", "got int"]),
    "mask rows in a dict": ([{"input_ids": IDS, "attention_mask": ROWS}], ["attention mask must be", "got list"]),
    "mask NaN": ([IDS, torch.full((4, 30), NAN)], ["mask", "1 for a token", "0"]),
    "all padding": ([[IDS, IDS], [0 * IDS] * 2], ["nothing to calibrate on", "0 at every token"]),
    "all padding in a dict": ([{"input_ids": IDS, "attention_mask": ONES.bool() ^ True}], ["nothing to calibrate on"]),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("case", BAD_TOKENS)
def test_what_is_no_tokens_is_refused_by_one_clear_error(case):
    arguments, fragments = BAD_TOKENS[case]
    for measure in MEASURES.values():
        action = lambda model, measure=measure: measure(model, *arguments)  # noqa: E731
        assert_raises_and_leaves_alone(OPT.model(), action, *fragments)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_what_is_no_model_is_refused_by_one_clear_error(measure):
    for model in (None, "mini-opt", [IDS]):
        with pytest.raises(ValueError, match=f"transformers causal language model, got {type(model).__name__}"):
            measure(model, IDS)


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
BATCH, MULTIPLE, SEED, LIMIT = (
    {"batch_size": "count"},
    {"multiple": "count"},
    {"seed": "seed"},
    {"limit": "count or None"},
)
COUNTS = dict.fromkeys(("prompt", "length", "rounds"), "count")


def sampled(model, **options):
    return sample(IDS.flatten(), **{"samples": 1, "seqlen": 4, **options})


OPTIONS = [  # a function, what stands beside the model, and what kind of value each option takes
    (fuse, (), {"keep_tie": "flag"}),
    (rotate, (), {"per_block": "flag", **SEED}),
    (slice_model, (IDS,), {**SLICING, **CHOICES, "slice_head": "flag", **SEED, **BATCH}),
    (minislice.delete_neurons, (IDS,), {"neurons": "fraction", "repair": "flag", **MULTIPLE, **BATCH}),
    (partial(minislice.delete_layers, layers=1), (IDS,), {"known": "ints", **BATCH}),
    (minislice.delete_layers, (IDS,), {"size": "share"}),
    (minislice.plan_compression, (IDS,), {"size": "share", "widths": "shares", "drop": "flag", **MULTIPLE, **BATCH}),
    (minislice.compress, (IDS,), {"size": "share", **MULTIPLE, **BATCH}),
    (partial(neurons_for, size=0.9), (), {"size": "share", **MULTIPLE}),
    (perplexity, (IDS,), BATCH),
    (verify, (IDS,), {"dtypes": "names", **SEED, **BATCH}),
    (minislice.compare, (IDS, IDS), {"sizes": "shares", "variants": "mapping", "tasks": "names", **LIMIT}),
    (minislice.zero_shot, (object(),), {"tasks": "names", **LIMIT, **BATCH}),
    (minislice.propose, (), SEED),
    (minislice.own_text, (2, 4), {"vocabulary": "count or None", **SEED, **BATCH}),
    (minislice.recover, (IDS,), {**TRAINING, **SEED, **BATCH}),
    (inference_cost, (LLAMA.model(),), {**COUNTS, "batch_size": "count or None"}),
    (sampled, (), {"samples": "count", "seqlen": "count", **SEED}),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("function", "beside", "kinds"), OPTIONS)
def test_an_option_out_of_its_range_is_refused_by_its_name(function, beside, kinds):
    model = made(LLAMA, SLICED)() if function is minislice.recover else LLAMA.model()
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


SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


from_config = transformers.AutoModelForCausalLM.from_config


def _opt(**differences):
    return from_config(transformers.OPTConfig(**{**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16, **differences}))


class PretendQuantized(nn.Linear):
    """Stands for the linears of quantization libraries and of PEFT, which are not plain nn.Linears."""


def _quantized():
    model = LLAMA.model()
    layer = model.model.layers[1].mlp
    layer.down_proj = PretendQuantized(layer.down_proj.in_features, layer.down_proj.out_features)
    return model.double()


BIRD = transformers.BigBirdConfig(**SMALL, is_decoder=True)
MODELS = {
    "unknown": (lambda: from_config(BIRD), "'big_bird'", "minislice propose", "minislice families"),
    "encoder": (lambda: transformers.BertModel(transformers.BertConfig(**SMALL)), "'bert'", "minislice families"),
    "post-norm": (lambda: _opt(do_layer_norm_before=False), "post-norm", "opt-350m"),
    "projected": (lambda: _opt(word_embed_proj_dim=8), "8", "16", "projected", "opt-350m"),
    "no final norm": (lambda: _opt(_remove_final_layer_norm=True), "no final norm"),
    "slow": (lambda: small_model("bloom", slow_but_exact=True, pretraining_tp=2), "in parts", "slow_but_exact=False"),
    "no head": (lambda: LLAMA.model().model, "LlamaModel", "head", "AutoModelForCausalLM"),
    "quantized": (_quantized, "mlp.down_proj", "PretendQuantized", "quantization"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_sliced_are_refused(case):
    build, *fragments = MODELS[case]
    model = build().eval()
    weights = copy.deepcopy(model.state_dict())
    for action in (fuse, rotate, slicing(width=4)):
        with pytest.raises(ValueError) as error:
            action(model)
        assert all(fragment in str(error.value) for fragment in fragments), error
        assert len(str(error.value)) < 500 and "gpt_neox" not in str(error.value)  # the reason, not the list
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        model(input_ids=IDS)  # it still runs


LAST = VOCABULARY - 1
UNUSED = IDS.masked_fill(IDS.eq(LAST), 1)  # no calibration token meets the last row of the tables
USED = UNUSED.clone()
USED[2:, 7] = LAST  # it is in the third sequence, which is in the second batch
UNTIED, THREE = replace(OPT, tied=False), replace(LLAMA, layers=3)
OPT_TABLE, TABLE, DOWN = "model.decoder.embed_tokens", "model.embed_tokens", "model.layers.1.mlp.down_proj"
EMBEDDED, WEIGHT = r"embeddings .* calibration sequence 2\b", r"{}\.weight has a NaN or an infinity; check the weights"
BLOCK, BEHIND = r"block {} .* calibration sequence 0\b", r"behind a block of layer 1 .* calibration sequence 0\b"
HALF = {"slicing": 0, "neurons": 0.5}
BROKEN = {  # a model, its broken weight, the value there, the calibration tokens, options, and what the error says
    "an embedding": (OPT, OPT_TABLE, NAN, USED, {"width": 5}, EMBEDDED),
    "a raw signal": (LLAMA, TABLE, INF, USED, {"width": 5, "signal": "raw"}, EMBEDDED),
    "a head": (UNTIED, "lm_head", NAN, UNUSED, {"width": 5}, WEIGHT.format("lm_head")),
    "an unused token": (PHI, TABLE, NAN, UNUSED, {"width": 5, "head": "own"}, WEIGHT.format("embed_tokens")),
    "a fitted head": (LLAMA, TABLE, NAN, UNUSED, {"width": 5, "head": "fitted"}, WEIGHT.format("embed_tokens")),
    "a tied head": (OPT, OPT_TABLE, NAN, UNUSED, {"head": "tied"}, WEIGHT.format("embed_tokens")),
    "a block": (OPT, "model.decoder.layers.0.fc2", NAN, IDS, {"width": 5}, BLOCK.format(1)),
    "a block after a dropped one": (LLAMA, DOWN, NAN, IDS, {"width": 5, "drop": [2]}, BLOCK.format(3)),
    "neurons": (THREE, DOWN, NAN, IDS, HALF, BEHIND),
    "repair": (THREE, DOWN, INF, IDS, {**HALF, "repair": True}, BEHIND),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_weight_is_named_by_its_place(case):
    recipe, name, value, ids, options, message = BROKEN[case]
    model = recipe.model()
    model.get_submodule(name).weight.data[-1 if "layers" not in name else 0, 0] = value
    with pytest.raises(ValueError, match=message):
        slice_model(model, ids, batch_size=2, **options)
