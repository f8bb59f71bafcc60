"""`minislice verify`: measure whether a model has the invariance."""

import argparse

import torch
from transformers import PreTrainedModel

from ..checks import require_choice
from ..corpus.embedded import SEQLEN
from ..corpus.text import load_text, sample, tokenize
from ..invariance import TOLERANCES
from ..symmetries.verification import verify
from .inputs import load_model, prepared, seqlen_of
from .output import print_result

RANDOM_TOKENS = 1 << 20


def run(arguments: argparse.Namespace) -> int:
    for name in arguments.dtypes or ():
        require_choice("--dtypes", name, TOLERANCES)
    if arguments.calibration:
        model, _, tokens, _, described = prepared(arguments, seqlen=SEQLEN)
        described = described["calibration"]
    else:
        model, tokenizer = load_model(arguments)
        stream, name = _default_stream(model, tokenizer, arguments.seed)
        tokens = sample(stream, arguments.samples, seqlen_of(arguments, model, SEQLEN), arguments.seed)
        described = f"{name}, {tokens.shape[0]} x {tokens.shape[1]} tokens"
    options = {"seed": arguments.seed, "progress": not arguments.quiet, "symmetries": arguments.symmetries}
    verification = verify(model, tokens, dtypes=arguments.dtypes or TOLERANCES, **options)
    result = {"passed": verification.passed, "tokens": described, **verification.measured()}
    print_result(arguments, result, f"On {described}:\n{verification}")
    return 0 if verification.passed else 1


def _default_stream(model: PreTrainedModel, tokenizer, seed: int) -> tuple[torch.Tensor, str]:
    """The embedded text where the tokenizer is the model's, else random tokens: the invariance is true of them too."""
    vocabulary = model.get_input_embeddings().num_embeddings
    cause = "no tokenizer"
    if tokenizer is not None:
        stream = tokenize(load_text("embedded"), tokenizer)
        if stream.max() < vocabulary:
            return stream, "embedded"
        cause = "the tokenizer belongs to another model"
    stream = torch.randint(vocabulary, (RANDOM_TOKENS,), generator=torch.Generator().manual_seed(seed))
    return stream, f"random tokens ({cause})"
