"""Small random models of all three families, and tokens for them.

transformers' initialisation is too tame to test with: biases are zero, norms have weight one, and with a standard
deviation of 0.02 the branches hardly change the signal. Here every parameter is drawn so that a mistake shows.
"""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from minislice.architecture.mixtures import able_to_compute

FAMILIES = ("opt", "llama", "phi")
VOCABULARY = 120
SEQUENCES, LENGTH = 4, 30  # more different tokens than any model here is wide: a covariance of full rank


@dataclass(frozen=True)
class Recipe:
    """Everything that a random model and its tokens depend on."""

    family: str
    layers: int = 2
    heads: int = 2
    kv_heads: int = 1  # OPT has as many as heads
    head_dim: int = 8
    hidden: int = 20  # of LLaMA alone, a multiple of its heads; OPT and Phi are heads * head_dim wide
    biases: bool = True  # OPT's enable_bias, LLaMA's attention_bias and mlp_bias; Phi always has them
    option: bool = False  # OPT: norms without weights; LLaMA: scaled RoPE; Phi: norms of queries and keys
    tied: bool = True
    eps: float = 1e-5
    padding: str = "none"  # none, left or right
    seed: int = 0

    @property
    def width(self) -> int:
        """D."""
        return self.hidden if self.family == "llama" else self.heads * self.head_dim

    @property
    def norm_in_float32(self) -> bool:
        """Whether the model's own norms compute in float32, whatever its dtype: LLaMA's do."""
        return self.family == "llama"

    softmax_in_float32 = False  # attention rounds to float32, so that a cache changes the order of its sums
    rounding = 0.0  # by how much rounding to float32 inside the model changes its logits
    logit_scale = 1.0  # the head's output is multiplied by it

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
        common, affine = self.common(), not self.option
        if self.family == "opt":
            common |= {"ffn_dim": 40, "word_embed_proj_dim": self.width, "enable_bias": self.biases}
            return AutoConfig.for_model("opt", hidden_size=self.width, layer_norm_elementwise_affine=affine, **common)
        common |= {"hidden_size": self.width, "intermediate_size": 40, "num_key_value_heads": self.kv_heads}
        if self.family == "phi":
            return AutoConfig.for_model("phi", layer_norm_eps=self.eps, qk_layernorm=self.option, **common)
        common |= {"attention_bias": self.biases, "mlp_bias": self.biases, "head_dim": self.head_dim}
        rope = {"rope_type": "linear", "factor": 2.0} if self.option else {"rope_type": "default"}
        common["rope_parameters"] = {**rope, "rope_theta": 10000.0}
        return AutoConfig.for_model("llama", rms_norm_eps=self.eps, **common)

    def common(self) -> dict:
        """The fields that every family has."""
        return {
            "vocab_size": VOCABULARY,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "max_position_embeddings": 64,
            "tie_word_embeddings": self.tied,
            "bos_token_id": None,
            "eos_token_id": None,  # generation runs to the length it is given
            "pad_token_id": 0,
        }

    def tokens(self, seed: int = 0) -> Tensor:
        """Random ids, [sequences, tokens]; `seed` distinguishes sets for the same recipe."""
        generator = torch.Generator().manual_seed(1000 * self.seed + seed)
        return torch.randint(1, VOCABULARY, (SEQUENCES, LENGTH), generator=generator)

    def lengths(self) -> list[int]:
        """The unpadded length of each sequence."""
        return [LENGTH] * SEQUENCES if self.padding == "none" else [LENGTH - 4 * row for row in range(SEQUENCES)]

    def mask(self) -> Tensor | None:
        """The attention mask that goes with `tokens`."""
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


@st.composite
def recipes(draw: st.DrawFn, paddings=("none", "left", "right")) -> Recipe:
    """Random small models; the simplest, which hypothesis shrinks to, come first."""
    heads = draw(st.sampled_from([1, 2, 4]))
    return Recipe(
        family=draw(st.sampled_from(FAMILIES)),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=draw(st.sampled_from([n for n in (1, 2, 4) if n <= heads])),
        head_dim=draw(st.sampled_from([4, 8])),
        hidden=heads * draw(st.integers(8 // heads, 32 // heads)),
        biases=draw(st.booleans()),
        option=draw(st.booleans()),
        tied=draw(st.booleans()),
        eps=draw(st.sampled_from([1e-6, 1e-5, 1e-4, 1e-3])),
        padding=draw(st.sampled_from(paddings)),
        seed=draw(st.integers(0, 99)),
    )
