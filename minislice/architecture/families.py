"""The one table that knows model families: which modules of a transformers layer are norm, W_in, W_out.

Everything else in minislice is written over blocks. To add a family, say where its norms and linears are.
"""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedConfig


@dataclass(frozen=True)
class BlockSpec:
    """One block of a decoder layer; every entry is a module's name inside the transformers layer."""

    norm: str
    w_in: tuple[str, ...]
    w_out: tuple[str, ...]
    attention: str | None = None
    mlp: tuple[str, ...] = ()  # one module, or several that are applied in turn


@dataclass(frozen=True)
class StockNorm:
    """What `stock` needs to know of the norm of transformers' own class."""

    eps: str  # the config's name for it
    subtracts_mean: bool


@dataclass(frozen=True)
class Family:
    decoder: str  # where the embeddings, `layers` and the final norm are
    embeddings: tuple[str, ...]  # inside the decoder: the tables whose rows are summed
    final_norm: str
    blocks: tuple[BlockSpec, ...]
    stock_norm: StockNorm | str  # or why transformers' own class can't hold a sliced model, in words
    dropout: str | None = None  # the config's name for the dropout on a branch's output
    obstacle: Callable[[PreTrainedConfig], str | None] = lambda config: None  # why this config can't be sliced
    head: str = "lm_head"


def _opt_obstacle(config: PreTrainedConfig) -> str | None:
    if not config.do_layer_norm_before:
        return "its norms come after the residual sum (post-norm, as in opt-350m), so no rotation passes through them"
    if config.word_embed_proj_dim != config.hidden_size:
        return (
            f"its embeddings are {config.word_embed_proj_dim} wide and projected to {config.hidden_size} "
            "(as in opt-350m), so the head does not read the blocks' signal"
        )
    if config._remove_final_layer_norm:
        return "it has no final norm"
    return None


FAMILIES = {
    "opt": Family(
        decoder="model.decoder",
        embeddings=("embed_tokens", "embed_positions"),
        final_norm="final_layer_norm",
        blocks=(
            BlockSpec(
                norm="self_attn_layer_norm",
                attention="self_attn",
                w_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                w_out=("self_attn.out_proj",),
            ),
            BlockSpec(
                norm="final_layer_norm",
                mlp=("fc1", "activation_fn", "fc2"),
                w_in=("fc1",),
                w_out=("fc2",),
            ),
        ),
        stock_norm="transformers ties the width of OPT's attention to the hidden size (it has no head_dim), and "
        "slicing makes the hidden size smaller but not the attention",
        dropout="dropout",
        obstacle=_opt_obstacle,
    ),
    "llama": Family(
        decoder="model",
        embeddings=("embed_tokens",),
        final_norm="norm",
        blocks=(
            BlockSpec(
                norm="input_layernorm",
                attention="self_attn",
                w_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                w_out=("self_attn.o_proj",),
            ),
            BlockSpec(
                norm="post_attention_layernorm",
                mlp=("mlp",),
                w_in=("mlp.gate_proj", "mlp.up_proj"),
                w_out=("mlp.down_proj",),
            ),
        ),
        stock_norm=StockNorm(eps="rms_norm_eps", subtracts_mean=False),
    ),
    "phi": Family(
        decoder="model",
        embeddings=("embed_tokens",),
        final_norm="final_layernorm",
        blocks=(
            BlockSpec(
                norm="input_layernorm",
                attention="self_attn",
                mlp=("mlp",),
                w_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
                w_out=("self_attn.dense", "mlp.fc2"),
            ),
        ),
        stock_norm=StockNorm(eps="layer_norm_eps", subtracts_mean=True),
        dropout="resid_pdrop",
    ),
}


def find_family(config: PreTrainedConfig) -> Family:
    """The family of a config, by its `model_type` alone.

    Raises:
        ValueError: the type isn't in the table, or this particular config can't be sliced; it says why.
    """
    supported = f"Supported model types: {', '.join(FAMILIES)}."
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f"minislice can't slice model_type {config.model_type!r}. {supported}")
    if obstacle := family.obstacle(config):
        raise ValueError(f"minislice can't slice this {config.model_type!r} model: {obstacle}. {supported}")
    return family
