r"""Which ruler predicts what a deletion does to the loss? Rank correlations of rulers with what was measured.

    python notebooks/measure/rulers.py --out data/results/rulers.jsonl
    python notebooks/measure/rulers.py smollm2 --text TEXT/wikitext2-test.raw --seqlen 512 --calibration 6 \
        --held-out 2 --probes 1 --layers 3 --boundaries 6 --out data/results/rulers.jsonl
    python notebooks/measure/rulers.py --table --out data/results/rulers.jsonl

Without a model: the three embedded ones, and four more where MINISLICE_TEST_ASSETS names a folder with them. Each
deletion is done alone in the dense, fused network, and changes the signal at one boundary from x to x + delta:

    block       x <- the signal before the block: the block is left out
    neurons     a third, or half, of an MLP's neurons go and W_out is solved for again (`minislice.beyond.neurons`)
    boundary    x <- x P P^T, P the first k principal components of the normalised signal; 10% or 25% of D deleted

The loss behind it is measured on held-out sequences. The rulers look at calibration sequences, at the same delta:

    energy      mean of ||delta||^2 / ||x||^2; at a boundary, the share of the variance that is discarded
    readers     ||(norm(x + delta) - norm(x)) W_in||^2 / ||norm(x) W_in||^2, W_in all that reads the boundary
    cosine      mean of 1 - cos(x, x + delta): ShortGPT's block influence, for any deletion
    gradient    |sum of g . delta|, g = dLoss/dx: first order, nats a token
    Fisher      1/2 sum of (g . delta)^2: second order
    measured    the loss itself, on other sequences: how far a measurement predicts another
    divergence  of the predictions there from the dense network's: what `beyond.rulers` measures
    interpolated  its `Cost` at half of the neurons, from a third and all of them

A budget asks for the cost of a parameter, so all kinds are also ranked together by ruler and loss for each of those
that are deleted. There `size` is the ruler that says the same of every deletion: what knowing their parameters gives.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from common import measured_by, models, read, write
from correlations import table
from torch import Tensor, nn
from tqdm.auto import tqdm

import minislice
from minislice.architecture.network import Network, network
from minislice.beyond.inner import block_moments
from minislice.beyond.neurons import keep_inner, solve_output
from minislice.beyond.rulers import PROBE, Cost, divergence, lost_shares
from minislice.calibration import Calibration, Signal
from minislice.corpus.batches import Batch, token_batches
from minislice.corpus.text import disjoint_streams, sample, windows
from minislice.likelihood import log_probabilities, logits_behind, prediction_losses
from minislice.pca import principal_components

HALF = 0.5  # of an MLP's neurons
DELETED = (0.1, 0.25)  # of the signal's dimensions


@dataclass(frozen=True)
class Item:
    """One deletion: what it did, and what each ruler said."""

    kind: str
    boundary: int  # at which the signal changes
    parameters: int  # deleted
    loss: float  # in nats a token, more than the dense network's
    rulers: dict[str, float]


@dataclass(frozen=True)
class Change:
    """What a deletion does to the held-out sequences, of which the first are probes, a ruler's to look at."""

    losses: Tensor  # of each, beyond the dense network's
    divergence: float  # from the dense network's predictions, on the probes


class Bench:
    """A fused network with its calibration and held-out sequences, walked from boundary to boundary."""

    def __init__(self, model: nn.Module, calibration: Tensor, held_out: Tensor, probes: int):
        self.net = network(minislice.fuse(model.eval()))
        self.blocks = [(index, block) for index, layer in enumerate(self.net.layers) for block in layer.blocks]
        one_by_one = token_batches(model, calibration, None, 1)  # a backward pass keeps all of the network's signals
        self.gradients = [gradients(self.net, batch) for batch in one_by_one]
        self.calibration = Calibration(one_by_one)
        self.held_out = Calibration(token_batches(model, held_out, None, 4))
        self.probes = probes
        self.embedded = self.calibration.embed(self.net), self.held_out.embed(self.net)
        self.dense = self.predicted(0, list(self.embedded[1]))

    def items(self, layers: int, boundaries: int) -> Iterator[Item]:
        """All deletions, in the order of the boundaries: in every so many layers, at every so many boundaries."""
        Z, X = self.embedded
        for number, (index, block) in enumerate(self.blocks):
            if number % boundaries == 0:
                yield from self.narrowed(number, Z, X)
            behind = self.calibration.forward(block, index, Z)
            if index % layers == 0:
                yield from self.shortened(number, Z, behind, X)
            Z, X = behind, self.held_out.forward(block, index, X)
        if len(self.blocks) % boundaries == 0:
            yield from self.narrowed(len(self.blocks), Z, X)

    def narrowed(self, boundary: int, Z: Signal, X: Signal) -> Iterator[Item]:
        """The signal at a boundary without its last principal components."""
        C = self.calibration.covariance(Z, self.net.norms[boundary], f"boundary {boundary}")
        Q = principal_components(C)[1].to(Z[0])
        for share in DELETED:
            P = Q[:, : len(Q) - round(share * len(Q))]
            deleted = (len(Q) - P.shape[1]) * sides(self.net, boundary)
            rulers = self.rulers(boundary, Z, [z @ P @ P.T for z in Z])
            yield self.item("boundary", boundary, deleted, rulers, self.change(boundary, [x @ P @ P.T for x in X]))

    def shortened(self, number: int, Z: Signal, behind: Signal, X: Signal) -> Iterator[Item]:
        """A block left out, and one with fewer neurons."""
        index, block = self.blocks[number]
        dropped = self.change(number + 1, list(X))
        rulers = self.rulers(number + 1, behind, list(Z))
        yield self.item("block", number + 1, minislice.parameters(block), rulers, dropped)
        if not block.neurons:
            return
        C, B = block_moments(self.calibration, block, index, Z)
        trials, found = {}, {}
        for share in (PROBE, HALF, 1.0):
            trials[share] = trial = copy.deepcopy(block)
            keep_inner(trial, *solve_output(trial, C, B, round(share * block.neurons), repair=False))
            ahead = [trial(x, **self.held_out.contexts[i][index]) for i, x in enumerate(X)]
            found[share] = self.change(number + 1, ahead)
        lost = lost_shares(block, C, sum(batch.ids.numel() for batch in self.calibration.batches))
        cost = Cost(dropped.divergence, block.neurons, found[PROBE].divergence, found[1.0].divergence, lost)
        for share, kind in ((PROBE, "neurons 1/3"), (HALF, "neurons 1/2")):
            trial = trials[share]
            changed = [trial(z, **self.calibration.contexts[i][index]) for i, z in enumerate(Z)]
            rulers = self.rulers(number + 1, behind, changed)
            if share == HALF:
                rulers["interpolated"] = cost.of(trial.neurons)
            deleted = minislice.parameters(block) - minislice.parameters(trial)
            yield self.item(kind, number + 1, deleted, rulers, found[share])

    def rulers(self, boundary: int, Z: Signal, changed: list[Tensor]) -> dict[str, float]:
        """Those that look at the calibration set, of its signal and of the changed one."""
        norm, G = self.net.norms[boundary], gram(self.net, boundary)
        energy, cosine, through, seen, along = [], [], 0.0, 0.0, []
        for z, y, own in zip(Z, changed, self.gradients, strict=True):
            z, y = z.double(), y.double()
            energy.append((y - z).square().sum(-1) / z.square().sum(-1))
            cosine.append(1 - nn.functional.cosine_similarity(z, y, dim=-1))
            read, change = norm(z), norm(y) - norm(z)
            through, seen = through + (read @ G * read).sum(), seen + (change @ G * change).sum()
            along.append((own[boundary] * (y - z)).sum(-1))
        predicted = sum(batch.ids[:, 1:].numel() for batch in self.calibration.batches)
        along = torch.cat(along)
        return {
            "energy": torch.cat(energy).mean().item(),
            "readers": (seen / through).item(),
            "cosine": torch.cat(cosine).mean().clamp(min=0).item(),  # rounding may make it less than zero
            "gradient": along.sum().abs().item() / predicted,
            "Fisher": along.square().sum().item() / 2 / predicted,
        }

    def change(self, boundary: int, X: list[Tensor]) -> Change:
        """What this signal at a boundary does."""
        (losses, predictions), (dense, expected) = self.predicted(boundary, X), self.dense
        return Change(losses - dense, divergence(expected, predictions))

    def predicted(self, boundary: int, X: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Of this signal at a boundary, the loss of each held-out sequence, and all predictions on the probes."""
        losses, predictions = [], []
        for x, batch, contexts in zip(X, self.held_out.batches, self.held_out.contexts, strict=True):
            logits = logits_behind(self.net, boundary, x, contexts, batch)
            losses.append(prediction_losses(logits, batch).double().view(len(batch.ids), -1).mean(1))
            predictions.append(log_probabilities(logits[: max(self.probes - batch.first_sequence, 0)], batch))
        return torch.cat(losses), predictions

    def item(self, kind: str, boundary: int, parameters: int, rulers: dict[str, float], change: Change) -> Item:
        measured, loss = (losses.mean().item() for losses in change.losses.tensor_split([self.probes]))
        rulers = {**rulers, "measured": measured, "divergence": change.divergence, "size": 1.0}
        return Item(kind, boundary, parameters, loss, rulers)


@torch.enable_grad()
def gradients(net: Network, batch: Batch) -> list[Tensor]:
    """dLoss/dx at every boundary, [sequences, tokens, D] each, for the sum of all predictions' losses."""
    x, contexts = net.embed(batch.ids)
    signals = [x.detach().requires_grad_()]
    for index, layer in enumerate(net.layers):
        for block in layer.blocks:
            signals.append(block(signals[-1], **contexts[index]))
    loss = prediction_losses(net.logits(signals[-1], batch.ids), batch).sum()
    return list(torch.autograd.grad(loss, signals))


def readers_of(net: Network, boundary: int) -> list[nn.Module]:
    return net.blocks[boundary].w_in if boundary < len(net.blocks) else [net.head]


def gram(net: Network, boundary: int) -> Tensor:
    """W_in W_in^T, [D, D], of all that reads a boundary."""
    return sum(linear.weight.T.double() @ linear.weight.double() for linear in readers_of(net, boundary))


def sides(net: Network, boundary: int) -> int:
    """The parameters of one dimension of the signal at a boundary: a column of what writes it, a row of what reads."""
    if boundary == 0:
        written = sum(table.num_embeddings for table in net.embeddings)
    else:
        written = sum(w.in_features + (w.bias is not None) for w in net.blocks[boundary - 1].w_out)
    return written + sum(linear.out_features for linear in readers_of(net, boundary))


@torch.no_grad()
def measure(model, calibration: Tensor, held_out: Tensor, probes: int, layers=1, boundaries=1) -> list[Item]:
    """All items of a dense model, which is fused in place, in every so many layers, at every so many boundaries."""
    items = Bench(model, calibration, held_out, probes).items(layers, boundaries)
    return list(tqdm(items, desc="deletions", leave=False))


def row_of(name: str, source: str, text: str, settings: argparse.Namespace) -> dict:
    """One model's items, with four digits, and with what they were measured."""
    began = time.process_time()
    model, tokenizer = minislice.load(source, dtype="float32")
    first, second = disjoint_streams(text, text, tokenizer)
    calibration = sample(first, settings.calibration, settings.seqlen, 0)
    held_out = windows(second, settings.seqlen, settings.held_out + settings.probes)
    items = measure(model, calibration, held_out, settings.probes, settings.layers, settings.boundaries)
    short = partial(json.loads, parse_float=lambda digits: float(f"{float(digits):.4g}"))
    return {
        "model": name,
        "text": Path(text).name,
        **{key: getattr(settings, key) for key in ("calibration", "held_out", "probes", "seqlen")},
        **measured_by(),
        "CPU seconds": round(time.process_time() - began, 1),
        "items": [short(json.dumps(asdict(item))) for item in items],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--text", default="embedded", help="its first half calibrates, its second is held out")
    parser.add_argument("--calibration", type=int, default=8, help="sequences")
    parser.add_argument("--held-out", type=int, default=6, help="sequences that the loss is measured on")
    parser.add_argument("--probes", type=int, default=4, help="and other ones, for the rulers that measure it")
    parser.add_argument("--seqlen", type=int, default=256)
    parser.add_argument("--layers", type=int, default=1, help="delete in every so many layers")
    parser.add_argument("--boundaries", type=int, default=1, help="at every so many boundaries")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is in the results")
    parser.add_argument("--out", type=Path, help="a .jsonl file to add rows to, one a model")
    settings = parser.parse_args()
    if settings.table and settings.out is None:
        parser.error("--table needs --out, the file with the results")
    torch.set_num_threads(1)
    rows = read(settings.out) if settings.out else []
    wanted = {Path(model).name: (model, settings.text) for model in settings.models} or models()
    for name, (source, text) in {} if settings.table else wanted.items():
        rows = [row for row in rows if row["model"] != name] + [row_of(name, source, text, settings)]
        if settings.out:
            write(settings.out, rows)
    print(table(rows))


if __name__ == "__main__":
    main()
