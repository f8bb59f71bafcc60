"""What slicing will leave, foretold from a config; and the paper's shapes, with random weights, to be timed.

The low-rank adapters have the highest rank there can be; trained models reach it too, unless a tolerance drops some of
it. In a LayerNorm model it can be one more if the calibration set spans fewer dimensions than are kept: then the
direction of the mean is mixed with others that carry no signal.
"""

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig, PhiConfig, PreTrainedConfig, PreTrainedModel

from ..architecture.building import description
from ..architecture.configuration import SlicedConfig
from ..architecture.modeling import without_memory
from ..architecture.network import network
from ..fusion import fuse
from ..options import SlicingOptions


def _opt(width: int, layers: int, heads: int) -> OPTConfig:
    widths = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width}
    return OPTConfig(**widths, num_hidden_layers=layers, num_attention_heads=heads)


def _llama(width: int, neurons: int, layers: int, heads: int, kv_heads: int) -> LlamaConfig:
    heads = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    sizes = {"hidden_size": width, "intermediate_size": neurons, "num_hidden_layers": layers}
    return LlamaConfig(**sizes, **heads, max_position_embeddings=4096)


SHAPES: dict[str, PreTrainedConfig] = {  # of the paper's models, by their names there in lower case
    "opt-125m": _opt(768, 12, 12),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-2.7b": _opt(2560, 32, 32),
    "opt-6.7b": _opt(4096, 32, 32),
    "opt-13b": _opt(5120, 40, 40),
    "opt-30b": _opt(7168, 48, 56),
    "opt-66b": _opt(9216, 64, 72),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32),
    "llama-2-13b": _llama(5120, 13824, 40, 40, 40),
    "llama-2-70b": _llama(8192, 28672, 80, 64, 8),
    "phi-2": PhiConfig(
        hidden_size=2560,
        intermediate_size=10240,
        num_hidden_layers=32,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.4},
    ),
}


def sliced_config(config: PreTrainedConfig, **options) -> SlicedConfig:
    """The config that slicing a model of this (dense) config leaves, at the highest ranks of its adapters; `options`
    are those of `SlicingOptions`.
    """
    options, dense = SlicingOptions(**options), without_memory(config)
    if options.discard is not None:
        raise ValueError("discard reads widths off a model's spectrum; give slicing or width")
    net = network(dense)
    options = options.resolved(net)
    widths = options.fit(net)
    dimensions = net.trained_width - (net.subtracts_mean and options.basis == "pca")  # no component lies along the mean
    return config_after(dense, options, widths, options.largest_adapters(dimensions, widths))


def config_after(
    dense: PreTrainedModel, options: SlicingOptions, widths: list[int], adapters: list[str | int | None]
) -> SlicedConfig:
    """The config that slicing leaves of a dense model without weights, which is fused here. `adapters` are those of
    the blocks that are not dropped.
    """
    fused = fuse(dense, keep_tie=options.head == "tied")
    network(fused).drop(options.drop)
    known = description(fused)
    known |= {"widths": widths, "adapters": adapters, "neurons": options.neurons_of(known["neurons"])}
    known["head"] = "linear" if options.head == "own" else options.head
    return SlicedConfig(**known)


@torch.no_grad()
def random_model(config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """A model of this config, dense or sliced, with random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for parameter in model.parameters():
        if not parameter.any():  # a product with zeros draws less power, and a GPU is then faster than it really is
            parameter.normal_(std=0.02)
    return model
