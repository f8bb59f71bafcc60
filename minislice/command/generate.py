"""`minislice generate`: a model goes on from a prompt."""

import argparse

import torch

from ..beyond.self_calibration import require_finite
from ..checks import require_seed
from ..corpus.batches import token_batches
from ..corpus.text import require_unicode
from ..measuring.cost import require_positions
from .inputs import load_both
from .output import print_result


def run(arguments: argparse.Namespace) -> None:
    require_unicode(arguments.prompt)
    torch.manual_seed(require_seed(arguments.seed))
    model, tokenizer = load_both(arguments)
    inputs = tokenizer(arguments.prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    if inputs["input_ids"].shape[1] == 0:
        raise ValueError("the prompt is empty: give at least one token to go on from")
    token_batches(model, inputs["input_ids"], None, 1)  # which refuses another tokenizer's ids
    written = inputs["input_ids"].shape[1] + arguments.max_new_tokens
    require_positions(model, written - 1)  # the last new token is not read again
    settings = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.do_sample}
    ids = model.generate(**inputs, **settings, logits_processor=[require_finite])
    text = tokenizer.decode(ids[0], skip_special_tokens=True)
    print_result(arguments, {"model": arguments.model, "text": text}, text)
