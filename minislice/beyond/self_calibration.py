"""Beyond the paper: a calibration text for a model whose own kind of text isn't at hand: the model writes it.

A causal language model is a distribution over texts, close to the one that it was trained on. So draw from it:

    t_1 uniformly from the vocabulary,        t_i ~ p(t | t_1 ... t_{i-1})        temperature 1, no token excluded

LLM-QAT (Liu et al. 2023) trains quantized models on such text; Self-calibration (Williams et al., NAACL 2025)
calibrates quantization and pruning on it.
"""

import torch
from jaxtyping import Int64
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel

from ..architecture.network import inference, network
from ..checks import require_int, require_seed
from ..corpus.batches import position_limit, with_what_fits


def own_text(
    model: PreTrainedModel,
    sequences: int,
    length: int,
    *,
    vocabulary: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> Int64[Tensor, "sequences length"]:
    """Token sequences that a trained model writes itself. The result is on the CPU.

    Args:
        vocabulary: the tokenizer's number of tokens, if the embedding has more rows; the first token is one of these.
        seed: the same, with the same batch size, on the same machine gives the same text; the caller's random numbers
            go on as they were.
        batch_size: sequences written together; where they don't fit into a GPU's memory, half as many, again halved ...
    """
    rows, limit, device = model.get_input_embeddings().num_embeddings, position_limit(model), model.device
    vocabulary = rows if vocabulary is None else min(require_int("vocabulary", vocabulary), rows)
    sequences, length = require_int("sequences", sequences), require_int("length", length, least=2)
    batch_size, seed = require_int("batch_size", batch_size), require_seed(seed)
    if limit is not None and length > limit:
        raise ValueError(f"a sequence of {length} tokens was asked for, but the model has {limit} positions")
    if network(model).is_fused:
        raise ValueError("this model is sliced or fused; let the trained one write what it is calibrated on")
    if device.type == "meta":
        raise ValueError("this model's weights are not in memory, so it can't write: calibrate on a text, or load it")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(vocabulary, (sequences, 1), generator=generator, device="cpu").to(device)
    asked = {"do_sample": True, "top_k": 0, "min_new_tokens": length - 1, "max_new_tokens": length - 1}
    asked["logits_processor"] = [require_finite]

    def write(together: int) -> Tensor:
        torch.manual_seed(seed)
        batches = tqdm(first.split(together), desc="writing text", disable=not progress, leave=False)
        return torch.cat([model.generate(ids, attention_mask=torch.ones_like(ids), **asked).cpu() for ids in batches])

    config, model.generation_config = model.generation_config, GenerationConfig()  # its own may ask for something else
    try:
        with inference(model), torch.random.fork_rng(range(torch.cuda.device_count())):
            return with_what_fits(write, batch_size)
    finally:
        model.generation_config = config


def require_finite(ids: Tensor, scores: Tensor) -> Tensor:
    """The same scores of the next token, for `generate`; a ValueError for a NaN or +inf (-inf rules a token out)."""
    if scores.isnan().any() or scores.isposinf().any():
        raise ValueError("the logits have a NaN or an infinity; check the weights, or use a wider dtype (--dtype)")
    return scores
