"""Small random models of every family in the table, over the options that change their structure, and tokens for them.

transformers' initialisation is too tame to test with: biases are zero, norms have weight one, and with a standard
deviation of 0.02 the branches hardly change the signal. Here every parameter is drawn so that a mistake shows. A family
is a line: what its config is called besides the common fields, and the variants that it comes in.
"""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from minislice.architecture.mixtures import able_to_compute
from minislice.architecture.network import network

PAPERS = ("opt", "llama", "phi")  # families; most facts are tried on random models of these
VOCABULARY = 120
SEQUENCES, LENGTH = 4, 30  # more different tokens than any model here is wide: a covariance of full rank

SLIDING = {"sliding_window": 6}
MIXED = {**SLIDING, "layer_types": ("full_attention", "sliding_attention", "sliding_attention", "full_attention")}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 32}
ROTARY = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}
SLOWER = {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}}

# The variants of each family, as fields of its config; of `layer_types`, as many are taken as there are layers.
VARIANTS: dict[str, tuple[dict, ...]] = {
    "opt": ({}, {"enable_bias": False}, {"layer_norm_elementwise_affine": False}),
    "llama": ({"attention_bias": True, "mlp_bias": True}, {}, {"attention_bias": True, **SLOWER}),
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
class Recipe:
    """Everything that a random model and its tokens depend on."""

    family: str
    variant: int = 0
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1  # where the config has them
    head_dim: int = 8
    hidden: int = 20  # the width where the config has a head_dim; elsewhere it is heads * head_dim
    tied: bool = True
    eps: float = 1e-5
    padding: str = "none"  # none, left or right
    seed: int = 0

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

    def model(self) -> nn.Module:
        """A new float64 model, in eval mode; the same one for the same recipe."""
        model = able_to_compute(AutoModelForCausalLM.from_config(self.config()).double()).eval()
        generator = torch.Generator().manual_seed(self.seed)
        tables = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                kind = "embedding" if parameter in tables else name.replace("embed", "")
                parameter.copy_(_random_like(parameter, kind, generator))
        for module in model.modules():
            if self.family == "opt" and isinstance(module, nn.LayerNorm):
                module.eps = self.eps  # its config has none
        return model

    def config(self) -> PreTrainedConfig:
        known, narrow = AutoConfig.for_model(self.family), self.heads * self.head_dim
        sizes = {"intermediate_size": 40, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim}
        sizes |= {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, **dict.fromkeys(EPS, self.eps)}
        sizes |= {"ffn_dim": 40, "word_embed_proj_dim": narrow}
        sizes["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
        own = [name for name in sizes if not isinstance(getattr(type(known), name, None), property)]
        fields = {name: sizes[name] for name in own if hasattr(known, name)}
        fields |= {
            "vocab_size": VOCABULARY,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": 64,
            "tie_word_embeddings": self.tied,
            "bos_token_id": None,
            "eos_token_id": None,  # generation runs to the length it is given
            "pad_token_id": 0,
        }
        is_free = "head_dim" in fields and self.family not in ("cohere2", "helium", "falcon")
        fields["hidden_size"] = self.hidden if is_free else narrow
        fields |= VARIANTS[self.family][self.variant]
        for name in ("layer_types", "no_rope_layers"):
            if name in fields:
                fields[name] = list(fields[name][: self.layers])
        return AutoConfig.for_model(self.family, **fields)

    def tokens(self, seed: int = 0) -> Tensor:
        """Random ids, [sequences, tokens]; `seed` distinguishes sets for the same recipe."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        return torch.randint(1, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)

    def lengths(self) -> list[int]:
        return [LENGTH] * SEQUENCES if self.padding == "none" else [LENGTH - 4 * row for row in range(SEQUENCES)]

    def mask(self) -> Tensor | None:
        if self.padding == "none":
            return None
        mask = (torch.arange(LENGTH) < torch.tensor(self.lengths())[:, None]).long()
        return mask.flip(1) if self.padding == "left" else mask


def _random_like(parameter: Tensor, name: str, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    if "embed" in name:  # a row mean that isn't zero, so that subtracting it, or not, is seen
        return noise + torch.randn(len(noise), 1, generator=generator, dtype=noise.dtype)
    if parameter.ndim == 2:
        return noise / parameter.shape[1] ** 0.5
    if name.endswith("bias"):
        return 0.5 * noise
    return 1 + 0.5 * torch.tanh(noise)  # a norm's scale


def fixed(family: str, variant: int = 0, **fields) -> Recipe:
    """The model that most tests of a family try."""
    fields = {"layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 4, "seed": 3, **fields}
    return Recipe(family, variant=variant, **fields)


@st.composite
def recipes(draw: st.DrawFn, families=PAPERS, paddings=("none", "left", "right")) -> Recipe:
    """Random small models; the simplest, which hypothesis shrinks to, come first."""
    family, heads = draw(st.sampled_from(families)), draw(st.sampled_from([2, 4]))
    return Recipe(
        family=family,
        variant=draw(st.integers(0, len(VARIANTS[family]) - 1)),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if n <= heads])),
        head_dim=draw(st.sampled_from([4, 8])),
        hidden=heads * draw(st.integers(8 // heads, 32 // heads)),
        tied=draw(st.booleans()),
        eps=draw(st.sampled_from([1e-6, 1e-5, 1e-4, 1e-3])),
        padding=draw(st.sampled_from([name for name in paddings if (family, name) != ("bloom", "left")])),
        seed=draw(st.integers(0, 99)),
    )
