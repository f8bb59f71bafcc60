"""A small random model of any architecture that transformers has: nothing to download, and quick to try things on."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..architecture.mixtures import able_to_compute

WIDTHS = {"vocab_size": 128, "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4}
NEURONS = {"intermediate_size": 48, "ffn_dim": 48, "ffn_hidden_size": 48}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS |= {"moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
SIZES = WIDTHS | HEADS | NEURONS | EXPERTS | TOKENS | {"max_position_embeddings": 64, "rope_parameters": ROPE}


@torch.no_grad()
def small_model(model_type: str, seed: int = 0, **fields) -> PreTrainedModel:
    """A float64 model whose norms have scales and shifts of their own, unlike a new model's, as trained ones have.

    Args:
        fields: of its config, besides `SIZES`.
    """
    known = AutoConfig.for_model(model_type)
    settable = {
        name: value
        for name, value in SIZES.items()
        if hasattr(known, name) and not isinstance(getattr(type(known), name, None), property)
    }
    config = AutoConfig.for_model(model_type, **{**settable, **fields})
    model = able_to_compute(AutoModelForCausalLM.from_config(config).double()).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.5 * torch.tanh(noise))
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.mul_(module.weight.shape[-1] ** 0.5)
    return model
