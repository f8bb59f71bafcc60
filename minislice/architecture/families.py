"""The one table that knows model families: which modules of a transformers layer are norm, W_in, W_out.

Everything else in minislice is written over blocks. To add a family, say where its norms and linears are, as here
LLaMA's (`family` explains each name; `minislice propose MODEL` finds them):

    from minislice.architecture.families import BlockSpec, Family, NormKind, StockNorm, register

    qkv, gate_up = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
    register("llama", Family(
        decoder="model",
        embeddings=("embed_tokens",),
        final_norm="norm",
        blocks=(
            BlockSpec(norm="input_layernorm", attention="self_attn", w_in=qkv, w_out=("self_attn.o_proj",)),
            BlockSpec(norm="post_attention_layernorm", mlp=("mlp",), w_in=gate_up, w_out=("mlp.down_proj",)),
        ),
        norm=NormKind(subtracts_mean=False, eps="variance_epsilon"),
        stock_norm=StockNorm(eps="rms_norm_eps"),
    ))
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from transformers import PreTrainedConfig

from .family import LAYERNORM, RMSNORM, BlockSpec, Family, NormKind, StockNorm

__all__ = ["FAMILIES", "REFUSED", "BlockSpec", "Family", "NormKind", "StockNorm", "find_family", "register"]

NO_HEAD_DIM = (
    "transformers ties the width of its attention to the hidden size (it has no head_dim), and slicing makes the "
    "hidden size smaller but not the attention"
)
INNER_NORMS = "the norms of its queries and keys share their eps with the others, whose eps the export has to change"

QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION = BlockSpec(norm="input_layernorm", attention="self_attn", w_in=QKV, w_out=("self_attn.o_proj",))
GATED_MLP = BlockSpec(
    norm="post_attention_layernorm", mlp=("mlp",), w_in=("mlp.gate_proj", "mlp.up_proj"), w_out=("mlp.down_proj",)
)
PLAIN_MLP = replace(GATED_MLP, w_in=("mlp.up_proj",))
FUSED_MLP = replace(GATED_MLP, w_in=("mlp.gate_up_proj",))  # gate and up one below the other
MIXTURE = replace(GATED_MLP, w_in=("mlp.gate", "mlp.experts"), w_out=("mlp.experts",))  # of experts
SHARED_MIXTURE = replace(  # and one expert for all tokens
    MIXTURE,
    w_in=("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", *MIXTURE.w_in, "mlp.shared_expert_gate"),
    w_out=("mlp.shared_expert.down_proj", *MIXTURE.w_out),
)
NEOX_ATTENTION = replace(  # queries, keys and values one below the other, head by head
    ATTENTION, attention="attention", w_in=("attention.query_key_value",), w_out=("attention.dense",)
)
NEOX_MLP = replace(GATED_MLP, w_in=("mlp.dense_h_to_4h",), w_out=("mlp.dense_4h_to_h",))
FALCON_ATTENTION = replace(
    ATTENTION, attention="self_attention", w_in=("self_attention.query_key_value",), w_out=("self_attention.dense",)
)


def parallel(attention: BlockSpec, mlp: BlockSpec) -> BlockSpec:
    """The block of a layer whose attention and MLP read the same signal, after one norm or two."""
    mlp_norm = mlp.norm if mlp.norm != attention.norm else None
    w_in, w_out = attention.w_in + mlp.w_in, attention.w_out + mlp.w_out
    return replace(attention, mlp=mlp.mlp, mlp_norm=mlp_norm, w_in=w_in, w_out=w_out)


PARALLEL = parallel(ATTENTION, replace(GATED_MLP, norm=ATTENTION.norm))

_SCALED = "{} a norm's scaled output, and a scale does not commute with a rotation"


def _opt_obstacle(config: PreTrainedConfig) -> str | None:
    if not config.do_layer_norm_before:
        return "its norms come after the residual sum (post-norm, as in opt-350m), so no rotation passes through them"
    narrow, D = config.word_embed_proj_dim, config.hidden_size
    if narrow != D:
        return f"its embeddings, {narrow} wide, are projected to {D} (as in opt-350m): the head reads another signal"
    return "it has no final norm" if config._remove_final_layer_norm else None


def _bloom_obstacle(config: PreTrainedConfig) -> str | None:
    if config.apply_residual_connection_post_layernorm:
        return f"{_SCALED.format('its residual connection carries')} (apply_residual_connection_post_layernorm)"
    if config.slow_but_exact and config.pretraining_tp > 1:
        return "it computes W_out in parts, without its bias (slow_but_exact); set slow_but_exact=False in its config"
    return None


def _parallel_or(both: BlockSpec, *sequential: BlockSpec) -> Callable[[PreTrainedConfig, int], tuple[BlockSpec, ...]]:
    return lambda config, layer: (both,) if config.use_parallel_residual else sequential


def _falcon_blocks(config: PreTrainedConfig, layer: int) -> tuple[BlockSpec, ...]:
    if not (config.new_decoder_architecture or config.parallel_attn):
        return FALCON_ATTENTION, NEOX_MLP
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):
        return (parallel(replace(FALCON_ATTENTION, norm="ln_attn"), replace(NEOX_MLP, norm="ln_mlp")),)
    return (parallel(FALCON_ATTENTION, replace(NEOX_MLP, norm=FALCON_ATTENTION.norm)),)


def _qwen_moe_blocks(mixture: BlockSpec) -> Callable[[PreTrainedConfig, int], tuple[BlockSpec, ...]]:
    def blocks(config: PreTrainedConfig, layer: int) -> tuple[BlockSpec, ...]:
        chosen = config.num_experts > 0 and (layer + 1) % config.decoder_sparse_step == 0
        return ATTENTION, mixture if chosen and layer not in config.mlp_only_layers else GATED_MLP

    return blocks


LLAMA = Family(
    decoder="model",
    embeddings=("embed_tokens",),
    final_norm="norm",
    blocks=(ATTENTION, GATED_MLP),
    norm=RMSNORM,
    stock_norm=StockNorm(eps="rms_norm_eps"),
)
WITH_LAYERNORM = replace(LLAMA, norm=LAYERNORM, stock_norm=NO_HEAD_DIM)
FALCON = replace(
    WITH_LAYERNORM,
    decoder="transformer",
    embeddings=("word_embeddings",),
    layers="h",
    final_norm="ln_f",
    blocks=_falcon_blocks,
    dropout="hidden_dropout",
    inner_width="ffn_hidden_size",
)
GPT = replace(FALCON, last_shaped_as="drop", dropout=None, inner_width="n_inner")  # GPT-J's up to transformers 5.17
COHERE = replace(
    LLAMA,
    blocks=(PARALLEL,),
    norm=NormKind(subtracts_mean=True, eps="variance_epsilon"),
    stock_norm=StockNorm(eps="layer_norm_eps"),
)
QWEN3 = replace(LLAMA, stock_norm=INNER_NORMS)
FAMILIES: dict[str, Family] = {
    "opt": replace(
        WITH_LAYERNORM,
        decoder="model.decoder",
        embeddings=("embed_tokens", "embed_positions"),
        final_norm="final_layer_norm",
        blocks=(
            replace(ATTENTION, norm="self_attn_layer_norm", w_out=("self_attn.out_proj",)),
            BlockSpec(norm="final_layer_norm", mlp=("fc1", "activation_fn", "fc2"), w_in=("fc1",), w_out=("fc2",)),
        ),
        dropout="dropout",
        obstacle=_opt_obstacle,
        inner_width="ffn_dim",
    ),
    "phi": replace(
        LLAMA,
        final_norm="final_layernorm",
        blocks=(replace(ATTENTION, mlp=("mlp",), w_in=(*QKV, "mlp.fc1"), w_out=("self_attn.dense", "mlp.fc2")),),
        norm=LAYERNORM,
        stock_norm=StockNorm(eps="layer_norm_eps"),
        dropout="resid_pdrop",
    ),
    **dict.fromkeys(("llama", "mistral", "ministral", "qwen2", "smollm3"), LLAMA),
    "helium": replace(LLAMA, stock_norm=NO_HEAD_DIM),
    "granite": replace(LLAMA, branch_scale="residual_multiplier"),
    "glm": replace(LLAMA, blocks=(ATTENTION, FUSED_MLP)),
    "phi3": replace(LLAMA, blocks=(replace(ATTENTION, w_in=("self_attn.qkv_proj",)), FUSED_MLP), dropout="resid_pdrop"),
    "qwen3": QWEN3,
    "apertus": replace(
        QWEN3,
        blocks=(replace(ATTENTION, norm="attention_layernorm"), replace(PLAIN_MLP, norm="feedforward_layernorm")),
    ),
    "mixtral": replace(LLAMA, blocks=(ATTENTION, MIXTURE)),
    "gpt_oss": replace(LLAMA, blocks=(ATTENTION, replace(MIXTURE, w_in=("mlp.router", "mlp.experts")))),
    "qwen2_moe": replace(LLAMA, blocks=_qwen_moe_blocks(SHARED_MIXTURE), expert_width="moe_intermediate_size"),
    "qwen3_moe": replace(QWEN3, blocks=_qwen_moe_blocks(MIXTURE), expert_width="moe_intermediate_size"),
    "gemma": replace(
        LLAMA,
        norm=NormKind(subtracts_mean=False, eps="eps", offset=1.0),
        stock_norm="it multiplies embeddings by the root of the hidden size, which slicing makes smaller",
    ),
    "nemotron": replace(
        LLAMA,
        blocks=(ATTENTION, PLAIN_MLP),
        norm=NormKind(subtracts_mean=True, eps="eps", offset=1.0),
        stock_norm="fusion gives biases to linears that have none in transformers' own class",
    ),
    "olmo": replace(
        LLAMA,
        norm=NormKind(subtracts_mean=True, eps=1e-5),
        stock_norm="its norm has no weights and a fixed eps, so it can't divide by the trained width",
    ),
    "starcoder2": replace(
        WITH_LAYERNORM, blocks=(ATTENTION, replace(GATED_MLP, w_in=("mlp.c_fc",), w_out=("mlp.c_proj",)))
    ),
    "stablelm": replace(WITH_LAYERNORM, blocks=_parallel_or(PARALLEL, ATTENTION, GATED_MLP), dropout="hidden_dropout"),
    "cohere": COHERE,
    "cohere2": COHERE,
    "gpt_neox": replace(
        WITH_LAYERNORM,
        decoder="gpt_neox",
        embeddings=("embed_in",),
        final_norm="final_layer_norm",
        blocks=_parallel_or(parallel(NEOX_ATTENTION, NEOX_MLP), NEOX_ATTENTION, NEOX_MLP),
        dropout="hidden_dropout",
    ),
    "falcon": FALCON,
    "bloom": replace(
        FALCON,
        embedding_norm="word_embeddings_layernorm",
        blocks=(replace(FALCON_ATTENTION, residual="residual"), replace(NEOX_MLP, residual="residual")),
        dropout=None,
        obstacle=_bloom_obstacle,
        inner_width=None,  # always four times the hidden size
    ),
    "gpt2": replace(
        GPT,
        embeddings=("wte", "wpe"),
        blocks=(
            BlockSpec(norm="ln_1", attention="attn", w_in=("attn.c_attn",), w_out=("attn.c_proj",)),
            BlockSpec(norm="ln_2", mlp=("mlp",), w_in=("mlp.c_fc",), w_out=("mlp.c_proj",)),
        ),
        obstacle=lambda config: "it has cross-attention to an encoder" if config.add_cross_attention else None,
    ),
    "gptj": replace(
        GPT,
        embeddings=("wte",),
        blocks=(
            parallel(
                BlockSpec("ln_1", ("attn.q_proj", "attn.k_proj", "attn.v_proj"), ("attn.out_proj",), attention="attn"),
                BlockSpec("ln_1", ("mlp.fc_in",), ("mlp.fc_out",), mlp=("mlp",)),
            ),
        ),
    ),
}
OWN = dict(FAMILIES)

_NORM_AFTER = (
    "after each branch stands a norm with a scale w ({}): the branch adds RMSNorm(f W_out) diag(w) to the signal, and "
    "diag(w) does not commute with a rotation"
)
_NORM_AFTER_BOTH = _NORM_AFTER.format("post_attention_layernorm, post_feedforward_layernorm")
_POST_NORM = _SCALED.format("its norms come after the residual sum (post-norm), so the signal itself is")
_NO_PRE_NORM = f"no norm stands before the linears that read the signal; and {_NORM_AFTER_BOTH}"
REFUSED: dict[str, str] = {  # by model_type: why no rotation passes through
    **dict.fromkeys(("gemma2", "gemma3", "gemma3_text"), _NORM_AFTER_BOTH),
    "glm4": _NORM_AFTER.format("post_self_attn_layernorm, post_mlp_layernorm"),
    **dict.fromkeys(("olmo2", "olmo3", "exaone4"), _NO_PRE_NORM),
    **dict.fromkeys(("bert", "roberta", "distilbert", "electra", "albert", "openai-gpt"), _POST_NORM),
}


def register(model_type: str, family: Family) -> None:
    """Add a family to the table, or replace one, in this process; a saved sliced model takes a new one along."""
    FAMILIES[model_type] = family


def registered_fields(config: PreTrainedConfig) -> dict[str, Any] | None:
    """The entry of a family that a user has registered, in JSON's types; None for minislice's own.

    Raises:
        ValueError: `blocks` is a function that gives different blocks to different layers.
    """
    family = FAMILIES[config.model_type]
    if family is OWN.get(config.model_type):
        return None
    first, *others = (family.blocks_of(config, layer) for layer in range(config.num_hidden_layers))
    if any(blocks != first for blocks in others):
        raise ValueError(
            f"the entry of {config.model_type!r} has a function for `blocks`, and a saved model can't take one along"
        )
    fields = asdict(replace(family, blocks=first))
    del fields["obstacle"]  # this config has none
    return fields


def register_fields(model_type: str, fields: dict[str, Any]) -> None:
    """Register what `registered_fields` returned, unless the type is known. JSON has lists in place of tuples."""

    def made(kind: type, fields: dict[str, Any]) -> Any:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})

    stock_norm = fields["stock_norm"]
    parts = {
        "norm": made(NormKind, fields["norm"]),
        "stock_norm": made(StockNorm, stock_norm) if isinstance(stock_norm, dict) else stock_norm,
        "blocks": [made(BlockSpec, block) for block in fields["blocks"]],
    }
    FAMILIES.setdefault(model_type, made(Family, fields | parts))


def find_family(config: PreTrainedConfig) -> Family:
    """The family of a config, by its `model_type` alone.

    Raises:
        ValueError: the type isn't in the table, or this particular config can't be sliced; it says why.
    """
    kind = config.model_type
    family = FAMILIES.get(kind)
    if family is None:
        reason = REFUSED.get(kind, "no entry of the table describes it (`minislice propose` looks for one)")
        raise ValueError(f"minislice can't slice model_type {kind!r}: {reason}; `minislice families` lists what it can")
    if obstacle := family.obstacle(config):
        raise ValueError(f"minislice can't slice this {kind!r} model: {obstacle}")
    return family
