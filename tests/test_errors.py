"""What can't be done is a ValueError that names what is wrong, and leaves the model as it was."""

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import properties
import pytest
import torch
from accelerate import cpu_offload
from models import VOCABULARY, Recipe, fixed
from torch import nn

import minislice
from minislice import fuse, perplexity, rotate, slice_model, verify
from minislice.beyond.budget import Plan
from minislice.beyond.rulers import Cost, Prices
from minislice.measuring.timing import inference_cost
from minislice.options import SlicingOptions
from minislice.recovery.options import RecoveryOptions
from minislice.teaching.small import small_model

pytestmark = pytest.mark.usefixtures("unchecked")
# D = 16 and 2 layers: OPT and LLaMA have 5 boundaries, Phi has 3.
OPT, LLAMA, PHI = (Recipe(family, hidden=16) for family in ("opt", "llama", "phi"))
IDS = OPT.tokens()
EYE = torch.eye(16).double()
NAN, INF = float("nan"), float("inf")


def assert_raises_and_leaves_alone(model, action, *fragments):
    """A ValueError with every fragment in its message; weights, logits and settings stay what they were."""
    weights, settings = copy.deepcopy(model.state_dict()), model.generation_config
    before = properties.logits(model, IDS)
    with pytest.raises(ValueError) as error:
        action(model)
    for fragment in fragments:
        assert str(fragment) in str(error.value)
    same = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    same(dict(model.state_dict()), dict(weights))
    same(properties.logits(model, IDS), before)
    assert model.generation_config is settings


def calling(function, *beside, **options):
    """What is done to a model: a function's call with it, some arguments beside it, and options."""
    return lambda model: function(model, *beside, **options)


def not_a_number(model):
    model.lm_head.weight.data[0, 0] = NAN


slicing, deleting, thinning = (
    partial(calling, function, IDS) for function in (slice_model, minislice.delete_layers, minislice.delete_neurons)
)
planning, comparing = partial(calling, minislice.plan_compression), partial(calling, minislice.compare, IDS)
SLICED = slicing(width=5, head="own")
PER_BLOCK, KEPT, TIED = partial(rotate, per_block=True), partial(fuse, keep_tie=True), partial(slicing, head="tied")
LONG, EIGHT = torch.ones(1, 65).long(), IDS.repeat(2, 1)
PLAN = Plan({}, 0, 0, 0.0, Prices([], {}))
PADDED = torch.ones_like(EIGHT).index_fill(0, torch.arange(4, 8), 0)
REFUSED = {  # a model, what was done to it before, what is done now, and what the error says
    "fused": (LLAMA, [fuse], fuse, "already fused"),
    "rotated per block": (LLAMA, [PER_BLOCK], rotate, "can't rotate", "rotated per block already"),
    "sliced twice": (LLAMA, [SLICED], SLICED, "can't slice", "sliced already", "trained model"),
    "tie kept": (LLAMA, [KEPT], rotate, "can't rotate", "keep_tie"),
    "no rotation": (LLAMA, [], partial(rotate, rotation=EYE + 1), "orthogonal"),
    "slicing and width": (PHI, [], slicing(slicing=0.25, width=8), "one of slicing, width and discard"),
    "nothing left": (PHI, [], slicing(slicing=0.9), "0.9", "16", "multiple of 8", "`multiple`"),
    "large width": (PHI, [], slicing(width=[8, 17, 8]), "between 1 and", "16", "17"),
    "no order": (PHI, [], slicing(width={8, 16}), "width must be a whole number, or one for each boundary"),
    "shrinks": (PHI, [], slicing(width=[8, 8, 4], adapter="none"), "never shrinks"),
    "spectrum": (PHI, [], slicing(discard=0.1, adapter="none"), "adapter='none'", "width"),
    "embedding": (PHI, [], slicing(width=[8, 8, 16], slice_embedding=False), "keeps boundary 0 whole", "give 16 there"),
    "no tie": (replace(PHI, tied=False), [], TIED(), "can't stay tied", "doesn't share"),
    "kept, own": (PHI, [KEPT], slicing(head="own"), "keep_tie", "head='tied'"),
    "long, sliced": (OPT, [], calling(slice_model, LONG), "65", "64 positions"),
    "texts in place of ids": (OPT, [], calling(perplexity, [{"text": IDS}]), "has text and no input_ids"),
    "one token": (OPT, [], calling(perplexity, IDS[:, :1]), "nothing to predict"),
    "fused, verified": (PHI, [fuse], calling(verify, IDS), "can't verify this model: it is fused already"),
    "sliced twice, fitted": (OPT, [slicing(slicing=0, head="fitted")], SLICED, "can't slice", "sliced already"),
    "sliced, verified": (PHI, [SLICED], calling(verify, IDS), "can't verify this model: it is sliced already"),
    "all neurons": (LLAMA, [], slicing(neurons=1.0), "neurons must be a fraction, 0 <= neurons < 1", "got 1.0"),
    "one number of neurons": (LLAMA, [], slicing(neurons=[8]), "got 1 numbers of neurons; this model has 2 MLPs"),
    "too many neurons": (LLAMA, [], slicing(neurons=[41, 8]), "can't leave 41 neurons of 40"),
    "text of numbers": (LLAMA, [], slicing(drop="12"), "drop must be a list of numbers"),
    "all columns": (LLAMA, [], slicing(slicing=1.0), "0 <= slicing < 1"),
    "first block": (LLAMA, [], slicing(drop=[0]), "block 0 can't be dropped"),
    "no such block": (LLAMA, [], slicing(drop=[4]), "there is no block 4 to drop; this model's are 0 to 3"),
    "fisher alone": (LLAMA, [], slicing(fisher=True), "give neurons as well"),
    "reconstruct alone": (LLAMA, [], slicing(reconstruct=True), "give repair as well"),
    "reconstruct alone, trained": (OPT, [], thinning(reconstruct=True), "give repair as well"),
    "NaN, fisher": (LLAMA, [not_a_number], thinning(fisher=True), "model.embed_tokens.weight has a NaN"),
    "fused, neurons": (OPT, [fuse], thinning(), "this model is fused"),
    "few neurons": (OPT, [], thinning(neurons=0.9), "leaves less than one multiple of 8"),
    "neither layers nor size": (LLAMA, [], deleting(), "one of layers and size"),
    "all layers": (LLAMA, [], deleting(layers=2), "from 0 to 1, got 2"),
    "known layers": (LLAMA, [], deleting(layers=1, known=[3]), "numbers from 0 to 1, each once, got [3]"),
    "few layers": (LLAMA, [], deleting(size=0.05), "5% of ", "parameters can't be reached: 2 layers of"),
    "numbered layers": (fixed("gpt2", 1), [], deleting(layers=1), "divides its attention by the layer's number"),
    "sliced, layers": (LLAMA, [SLICED], deleting(layers=1), "delete first, and slice"),
    "NaN, layers": (LLAMA, [not_a_number], deleting(layers=1), "isn't a number"),
    "small plan": (LLAMA, [], planning(EIGHT, size=0.01, widths=(1.0,)), "nothing that can be deleted leaves 1%"),
    "few sequences": (LLAMA, [], planning(IDS[:2]), "give more, the last 4 measure costs"),
    "padding alone": (LLAMA, [], planning(EIGHT, PADDED), "nothing to predict in the last 4 calibration sequences"),
    "prices of another model": (LLAMA, [], planning(IDS, known=Prices([Cost(0.1)], {16: 0.0})), "another model's"),
    "plan and options": (LLAMA, [], calling(minislice.compress, IDS, plan=PLAN, size=0.5, typo=1), "size, typo out"),
    "fused, planned": (LLAMA, [fuse], planning(EIGHT), "can't compress", "fused already"),
    "sliced, planned": (LLAMA, [SLICED], planning(EIGHT), "can't compress", "sliced already"),
    "sliced, neurons": (LLAMA, [SLICED], thinning(), "can't delete neurons", "sliced already"),
    "long text": (OPT, [], calling(minislice.own_text, 1, 10**4), "10000 tokens", "64 positions"),
    "NaN, text": (OPT, [not_a_number], calling(minislice.own_text, 1, 8), "NaN"),
    "not sliced": (LLAMA, [], calling(minislice.recover, IDS), "isn't sliced"),
    "not sliced, saved": (LLAMA, [], calling(minislice.save, "nowhere"), "isn't sliced"),
    "not sliced, exported": (LLAMA, [], calling(minislice.export, "nowhere"), "isn't sliced"),
    "half a rank": (LLAMA, [SLICED], calling(minislice.recover, IDS, rank=2.5), "rank must be a whole number"),
    "compare: dense": (LLAMA, [], comparing(IDS, variants={"dense": len}), "'dense' is the dense model's row"),
    "compare: one window": (LLAMA, [], comparing(IDS[:1]), "a standard error needs at least two windows"),
    "compare: rows": (LLAMA, [], comparing(IDS.tolist()), "must be tensors of ids, [sequences, tokens]"),
    "compare: size": (LLAMA, [], comparing(IDS, sizes=[1.5]), "0 < sizes <= 1"),
    "compare: tasks": (LLAMA, [], comparing(IDS, tasks=["piqa"]), "can't be measured: zero-shot tasks are texts"),
    "fused, text": (OPT, [fuse], calling(minislice.own_text, 1, 8), "sliced"),
    "long, GPT-J": (fixed("gptj"), [], calling(perplexity, LONG), "65", "64 positions"),
    "compiled": (LLAMA, [], lambda model: verify(torch.compile(model), IDS), "OptimizedModule", "inside"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_done_is_refused_and_leaves_the_model_alone(case):
    recipe, before, action, *fragments = REFUSED[case]
    model = recipe.model()
    for step in before:
        step(model)
    assert_raises_and_leaves_alone(model, action, *fragments)


@pytest.mark.parametrize("change", [fuse, rotate, slicing(slicing=0)])
def test_weights_that_are_not_in_memory_are_not_changed(change):
    """Accelerate would go on computing with its own copy of them."""
    with pytest.raises(ValueError, match="load it without device_map"):
        change(cpu_offload(LLAMA.model()))
    spread = LLAMA.model()
    spread.lm_head.to("meta")  # as on a second GPU
    with pytest.raises(ValueError, match="load it without device_map"):
        change(spread)


def test_what_looks_like_it_is_fine():
    perplexity(LLAMA.model(), torch.arange(1, 66)[None])  # a rotary embedding has no table that ends
    mask = torch.ones_like(IDS)
    mask[:2] = 0  # the first batch of two
    for measure in MEASURES.values():
        measure(OPT.model(), IDS, mask, batch_size=2)


MEASURES = {"slice_model": slice_model, "perplexity": perplexity, "verify": verify}
ROWS, ONES = IDS.tolist(), torch.ones_like(IDS)
BAD_TOKENS = {
    "an id too high": ([IDS.masked_fill(IDS.eq(IDS[2, 2]), VOCABULARY)], [f"0 to {VOCABULARY - 1}", "tokenizer"]),
    "ids float": ([IDS.double()], ["ints", "(4, 30)", "float64"]),
    "text": (["a text"], ["got str", "tokenizer("]),
    "rows": ([ROWS], ["got list", "torch.tensor(rows)"]),
    "ragged rows": ([[ROWS[0], ROWS[1][:7]]], ["got list", "different lengths", "tokenizer.pad"]),
    "mask too short": ([IDS, torch.ones(4, 29).long()], ["mask", "(4, 29)", "(4, 30)"]),
    "one mask of two": ([[IDS, IDS], ONES], ["2 batches", "1 attention mask"]),
    "all padding": ([[IDS, IDS], [0 * IDS] * 2], ["nothing to calibrate on", "0 at every token"]),
}


@pytest.mark.parametrize("case", BAD_TOKENS)
def test_what_is_no_tokens_is_refused_by_one_clear_error(case):
    arguments, fragments = BAD_TOKENS[case]
    for measure in MEASURES.values():
        assert_raises_and_leaves_alone(OPT.model(), calling(measure, *arguments), *fragments)


CHOICES = "signal adapter basis orientation pca_dtype"
TRAINING = "rank alpha dropout learning_rate epochs steps accumulation held_out every patience train_adapters"
OPTIONS = [  # a function, what stands beside the model, and its options
    (fuse, (), "keep_tie"),
    (rotate, (), "per_block seed"),
    (slice_model, (IDS,), f"slicing discard multiple {CHOICES} drop repair reconstruct fisher batch_size"),
    (minislice.delete_neurons, (IDS,), "neurons repair multiple batch_size"),
    (partial(minislice.delete_layers, layers=1), (IDS,), "known batch_size"),
    (minislice.delete_layers, (IDS,), "size"),
    (minislice.plan_compression, (IDS,), "size widths drop multiple batch_size"),
    (minislice.compress, (IDS,), "size multiple batch_size"),
    (perplexity, (IDS,), "batch_size"),
    (verify, (IDS,), "dtypes seed batch_size"),
    (minislice.compare, (IDS, IDS), "sizes variants tasks limit"),
    (minislice.zero_shot, (object(),), "limit batch_size"),
    (minislice.propose, (), "seed"),
    (minislice.own_text, (2, 4), "vocabulary seed batch_size"),
    (minislice.recover, (IDS,), f"{TRAINING} seed batch_size"),
    (inference_cost, (LLAMA.model(),), "prompt length rounds batch_size"),
]


@pytest.mark.parametrize(("function", "beside", "options"), OPTIONS)
def test_an_option_of_another_kind_is_refused_by_its_name(function, beside, options):
    model = SLICED(LLAMA.model()) if function is minislice.recover else LLAMA.model()
    for option in options.split():
        for value in ("no such", -1, NAN, INF):  # no option here takes one of these
            with pytest.raises(ValueError, match=option):
                function(model, *beside, **{option: value})


def test_numbers_of_numpy_are_numbers_which_json_can_hold():
    one, whole = np.float32(0.25), np.int64(4)
    slice_model(LLAMA.model(), IDS, width=whole, drop=np.array([1]), batch_size=whole)
    options = {"multiple": whole, "neurons": one, "tolerance": one, "seed": whole, "drop": np.array([4])}
    for size in ({"slicing": one}, {"discard": one}, {"width": whole}, {"width": np.array([8, 4])}):
        json.dumps(vars(SlicingOptions(**size, **options)) | vars(RecoveryOptions(rank=whole)))


def quantized():
    model = LLAMA.model()
    model.model.layers[1].mlp.down_proj = type("PretendQuantized", (nn.Linear,), {})(40, 16)  # as libraries' are
    return model


def with_lora():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(LLAMA.model(), LoraConfig(target_modules=["q_proj"]))


MODELS = {  # which configurations of the families are refused: test_propose
    "unknown": (lambda: small_model("big_bird", is_decoder=True), "'big_bird'", "minislice propose"),
    "no head": (lambda: LLAMA.model().model, "LlamaModel", "head", "AutoModelForCausalLM"),
    "quantized": (quantized, "mlp.down_proj", "PretendQuantized", "quantization"),
    "of PEFT": (with_lora, "PEFT", "merge_and_unload"),
    "a name": (lambda: "mini-opt", "transformers causal language model, got str"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_cannot_be_sliced_are_refused(case):
    build, *fragments = MODELS[case]
    for action in (fuse, rotate, slicing(width=4), calling(verify, IDS)):
        with pytest.raises(ValueError) as error:
            action(build())
        assert all(fragment in str(error.value) for fragment in fragments), error


PLACE = r"{} .* calibration sequence 0\b"
BROKEN = {  # a broken weight, options, and what the error says
    "embed_tokens": ({"width": 5}, PLACE.format("embeddings")),
    "layers.1.mlp.down_proj": ({"width": 5, "drop": [2]}, PLACE.format("block 3")),
    "layers.1.mlp.gate_proj": ({"slicing": 0, "neurons": 0.5}, PLACE.format("after block 3")),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_weight_is_named_by_its_place_and_the_model_is_refused_from_then_on(name):
    options, message = BROKEN[name]
    model = replace(LLAMA, layers=3, tied=False).model()
    model.model.get_submodule(name).weight.data[:, 0] = NAN
    with pytest.raises(ValueError, match=message):
        slice_model(model, IDS, batch_size=2, **options)
    for action in (slicing(slicing=0), thinning(), lambda model: minislice.save(model, "nowhere")):
        with pytest.raises(ValueError, match="half changed: load it again"):
            action(model)
