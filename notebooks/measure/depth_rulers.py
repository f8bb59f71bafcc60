"""Which ruler says what layers to delete: perplexity after each deletion, by the layers' own measured losses (SLEB), by
losses measured once, and by block influence (ShortGPT).

    python notebooks/measure/depth_rulers.py

The three embedded models, and four more where MINISLICE_TEST_ASSETS names a folder with them. 16 x 256 tokens
calibrate unless the ruler says otherwise, perplexity is over 40 other windows.
"""

import torch
from common import models
from torch import nn

import minislice
from minislice.architecture.network import inference, network
from minislice.beyond.depth import delete_layer, losses_without_each
from minislice.corpus.batches import token_batches
from minislice.corpus.text import disjoint_streams, sample, windows
from minislice.measuring.tables import markdown


def influences(model, tokens) -> list[float]:
    """Mean of 1 - cos(x_l, x_{l+1}) over tokens, for every layer."""
    net, cosines = network(model), [[] for _ in network(model).layers]
    with inference(model):
        for batch in token_batches(model, tokens, None, 8):
            x, contexts = net.embed(batch.ids, batch.mask)
            for index, layer in enumerate(net.layers):
                before = x
                for block in layer.blocks:
                    x = block(x, **contexts[index])
                cosines[index].append(nn.functional.cosine_similarity(before, x, dim=-1).flatten())
    return [1 - torch.cat(own).mean().item() for own in cosines]


def perplexities(source: str, order: list[int], tokens) -> list[float]:
    """Behind each deletion, of layers given by their numbers in the trained model."""
    model, found = minislice.load(source, dtype="float32")[0], []
    left = list(range(len(network(model).layers)))
    for number in order:
        delete_layer(network(model), left.index(number))
        left.remove(number)
        found.append(minislice.perplexity(model, tokens))
    return found


def again(source: str, tokens, count: int) -> list[int]:
    """The layers that `delete_layers` deletes, in their order."""
    return minislice.delete_layers(minislice.load(source, dtype="float32")[0], tokens, layers=count).deleted_layers


def main() -> None:
    torch.set_num_threads(1)
    lines = []
    for name, (source, text) in models().items():
        model, tokenizer = minislice.load(source, dtype="float32")
        calibration, evaluation = disjoint_streams(text, text, tokenizer)
        many, evaluation = sample(calibration, 64, 256, 0), windows(evaluation, 256, 40)
        dense, most = minislice.perplexity(model, evaluation), min(3, len(network(model).layers) - 1)
        once = losses_without_each(network(model), token_batches(model, many[:16], None, 8))
        orders = {
            "block influence": sorted(range(len(once)), key=influences(model, many[:16]).__getitem__)[:most],
            "loss, measured once": sorted(range(len(once)), key=once.__getitem__)[:most],
            "loss, measured again": again(source, many[:16], most),
            **{f"loss, {count} x 256 tokens": again(source, many[:count], most) for count in (4, 8, 64)},
        }
        for ruler, order in orders.items():
            after = [dense, *perplexities(source, order, evaluation)]
            lines.append([name, ruler, *(f"{value:.2f}" for value in after)])
    print(markdown(["model", "ruler", "-0", "-1", "-2", "-3"], lines))


if __name__ == "__main__":
    main()
