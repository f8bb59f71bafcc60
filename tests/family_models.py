"""Small random models of every family in the table, over the options that change their structure.

`models` has OPT, LLaMA and Phi in detail; here a family is a line: what its config is called besides the common fields,
and the variants that it comes in.
"""

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from models import Recipe
from torch import nn
from transformers import AutoConfig

from minislice.architecture.network import network

SLIDING = {"sliding_window": 6}
MIXED = {**SLIDING, "layer_types": ("full_attention", "sliding_attention", "sliding_attention", "full_attention")}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}

# The variants of each family, as fields of its config; of `layer_types`, as many are taken as there are layers.
VARIANTS: dict[str, tuple[dict, ...]] = {
    "opt": ({"ffn_dim": 40, "word_embed_proj_dim": None},),
    "llama": ({"attention_bias": True}, {"mlp_bias": True}),
    "phi": ({}, {"qk_layernorm": True}),
    "mistral": ({}, SLIDING),
    "ministral": (MIXED, SLIDING),
    "helium": ({"attention_bias": True}, {"mlp_bias": True}),
    "qwen2": ({"use_sliding_window": True, **MIXED}, {}),
    "qwen3": ({"use_sliding_window": True, **MIXED}, {"attention_bias": True}),
    "smollm3": ({"no_rope_layers": (1, 0, 1, 0)}, {"use_sliding_window": True, **MIXED}),
    "granite": ({"residual_multiplier": 0.3, "embedding_multiplier": 3.0, "logits_scaling": 2.0}, {"mlp_bias": True}),
    "gemma": ({}, {"attention_bias": True}),
    "phi3": ({}, SLIDING),
    "glm": (ROTARY, {**ROTARY, "attention_bias": True}),
    "apertus": ({}, {"attention_bias": True}),
    "nemotron": (ROTARY, {**ROTARY, "attention_bias": True, "mlp_bias": True}),
    "olmo": ({}, {"clip_qkv": 0.5, "attention_bias": True}),
    "starcoder2": ({}, {"use_bias": False, **SLIDING}),
    "stablelm": (
        {**ROTARY, "use_parallel_residual": True},
        {**ROTARY, "use_parallel_residual": False, "use_qkv_bias": True, "qk_layernorm": True},
    ),
    "gpt_neox": (
        {**ROTARY, "use_parallel_residual": True},
        {**ROTARY, "use_parallel_residual": False, "attention_bias": False},
    ),
    "cohere": ({"logit_scale": 0.3}, {"use_qk_norm": True, "attention_bias": True}),
    "cohere2": ({"logit_scale": 0.3, **MIXED}, {"attention_bias": True, **SLIDING}),
    "gpt2": ({}, {"scale_attn_by_inverse_layer_idx": True, "n_inner": 24}),
    "gptj": ({"rotary_dim": 4},),
    "falcon": (
        {"multi_query": True, "parallel_attn": True, "alibi": False},  # 7B
        {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "alibi": False},  # 40B
        {"parallel_attn": False, "alibi": True, "bias": True, "multi_query": False},  # rw
        {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "alibi": True},
    ),
    "bloom": ({},),
    "mixtral": ({}, SLIDING),
    "qwen2_moe": (
        {"moe_intermediate_size": 12, "shared_expert_intermediate_size": 20},
        {"moe_intermediate_size": 12, "decoder_sparse_step": 2, "qkv_bias": False, "use_sliding_window": True, **MIXED},
    ),
    "qwen3_moe": (
        {"moe_intermediate_size": 12},
        {"moe_intermediate_size": 12, "mlp_only_layers": [1], "attention_bias": True},
    ),
    "gpt_oss": ({**MIXED, "rope_parameters": YARN}, {**MIXED, "attention_bias": False}),
}
FAMILIES = tuple(VARIANTS)
CASES = [(family, variant) for family, variants in VARIANTS.items() for variant in range(len(variants))]
REPRESENTATIVES = [  # each stands for a generalisation of the table
    ("gpt2", 0),  # Conv1D, and a last signal of the first one's shape
    ("bloom", 0),  # a norm of the embedding, ALiBi
    ("falcon", 1),  # two norms in a parallel layer
    ("granite", 0),  # a number on the branches
    ("olmo", 0),  # norms without weights
    ("phi3", 1),  # fused projections, a sliding window
    ("cohere2", 0),  # layers with masks of their own
    ("mixtral", 1),  # experts
    ("qwen2_moe", 1),  # experts in some layers, and a shared one
    ("gpt_oss", 0),  # transposed experts with biases
]
REPRESENTATIVES_FIRST = [  # the others with `-m slow`
    pytest.param(*case, marks=() if case in REPRESENTATIVES else pytest.mark.slow) for case in CASES
]
EPS = ("rms_norm_eps", "layer_norm_eps", "norm_eps", "norm_epsilon", "layer_norm_epsilon")


@dataclass(frozen=True)
class FamilyRecipe(Recipe):
    """As `Recipe`, of any family; `hidden` is the width where the config has a head_dim, else heads * head_dim is."""

    variant: int = 0

    @property
    def width(self) -> int:
        return self.config().hidden_size

    @property
    def logit_scale(self) -> float:
        """What the head's output is multiplied by."""
        config = self.config()
        return getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)

    @property
    def norm_in_float32(self) -> bool:
        return not isinstance(network(self.model()).final_norm, nn.LayerNorm)

    @property
    def softmax_in_float32(self) -> bool:
        return self.family in ("bloom", "gptj")  # GPT-J up to transformers 5.17

    @property
    def rounding(self) -> float:
        """Float32, in a router's softmax or a norm before it, moves the weights of the experts."""
        return 1e-4 if self.family in ("mixtral", "qwen2_moe", "qwen3_moe", "gpt_oss") else 0.0

    def config(self):
        known = AutoConfig.for_model(self.family)
        narrow = self.heads * self.head_dim
        sizes = {"intermediate_size": 40, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim}
        sizes |= {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, **dict.fromkeys(EPS, self.eps)}
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
        own = [name for name in sizes if not isinstance(getattr(type(known), name, None), property)]
        fields = {name: sizes[name] for name in own if hasattr(known, name)}
        fields |= self.common() | VARIANTS[self.family][self.variant % len(VARIANTS[self.family])]
        is_free = "head_dim" in fields and self.family not in ("cohere2", "helium", "falcon")
        fields["hidden_size"] = self.hidden if is_free else narrow
        if "word_embed_proj_dim" in fields:
            fields["word_embed_proj_dim"] = narrow
        for name in ("layer_types", "no_rope_layers"):
            if name in fields:
                fields[name] = list(fields[name][: self.layers])
        return AutoConfig.for_model(self.family, **fields)


def fixed(family: str, variant: int = 0, **fields) -> FamilyRecipe:
    """The model that most tests of a family try."""
    fields = {"layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 4, "seed": 3, **fields}
    return FamilyRecipe(family, variant=variant, **fields)


@st.composite
def family_recipes(draw: st.DrawFn, family: str) -> FamilyRecipe:
    """Random small models of a family, over all its variants."""
    heads = draw(st.sampled_from([2, 4]))
    return FamilyRecipe(
        family=family,
        variant=draw(st.integers(0, len(VARIANTS[family]) - 1)),
        layers=draw(st.integers(2, 4)),
        heads=heads,
        kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if n <= heads])),
        head_dim=draw(st.sampled_from([4, 8])),
        hidden=draw(st.sampled_from([12, 16, 20])),
        tied=draw(st.booleans()),
        eps=draw(st.sampled_from([1e-6, 1e-4, 1e-3])),
        padding=draw(st.sampled_from(["none", "right"] if family == "bloom" else ["none", "left", "right"])),
        seed=draw(st.integers(0, 99)),
    )
