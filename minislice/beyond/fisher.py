"""Beyond the paper: neurons are scored by what they mean to the loss.

`neurons` deletes the neurons without which the signal changes least, whatever the direction of the change. But the
later blocks hardly notice some directions, and depend on others. With g_t the gradient of the loss at the block's
output, a row for each token t:

    G = sum_t g_t^T g_t                            [D, D]
    M = (1 - mu) G / mean(diag G) + mu I           [D, D]

and the cost of a neuron i is W_i M W_i^T / A_ii, in place of ||W_i||^2 / A_ii (van der Ouderaa et al., LLM Surgeon,
2023, arXiv 2312.17244). W_out is solved for as before.

The targets of the loss are drawn from the model's own predictions, not read off the text. Then G is the Fisher
information: where the block's output at one token changes by a small v, the divergence from the model's predictions is
on average v G_t v^T / 2, with G_t the token's share of G. Only the first `SEQUENCES` sequences are used.

There is an M for each block with neurons; an expert has its block's. They are all in memory at once: blocks x D^2 x 8
bytes, 80 MB for SmolLM2's 30 blocks and 4.3 GB for the 32 of LLaMA-2 7B. A backward pass keeps what one sequence needs.
"""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..architecture.blocks import Block
from ..architecture.network import Network, inference
from ..calibration import Calibration, require_finite
from ..corpus.batches import Batch
from ..likelihood import predicting
from ..pca import covariance

SEQUENCES = 16  # at most so many
MIX = 0.03  # mu: the share of the identity


def fisher_metrics(net: Network, calibration: Calibration) -> dict[Block, Float64[Tensor, "D D"]]:
    """M of each block with neurons, in a dense network, which stays as it is."""
    metrics = information(net, calibration)
    for G in metrics.values():  # in place: each is large
        scale = G.diagonal().mean().clamp(min=torch.finfo(G.dtype).tiny)  # G is zero if nothing is predicted
        G.mul_(1 - MIX).div_(scale).diagonal().add_(MIX)
    return metrics


def information(net: Network, calibration: Calibration) -> dict[Block, Float64[Tensor, "D D"]]:
    """G of each block with neurons."""
    device, D = calibration.batches[0].ids.device, net.trained_width
    totals = {block: torch.zeros(D, D, dtype=torch.float64, device=device) for block in net.blocks if block.neurons}
    with inference(net.model):
        for batch in calibration.batches:
            for row in range(min(len(batch.ids), SEQUENCES - batch.first_sequence)):
                if (sequence := batch.part(row, row + 1)).predictions:
                    for block, gradient in gradients(net, sequence).items():
                        covariance(gradient, sequence.mask, totals[block])
    for block, total in totals.items():
        totals[block] = calibration.summed(total)
        if not torch.isfinite(total).all():
            raise ValueError("a gradient of the loss has a NaN or an infinity; use a wider dtype, or leave fisher out")
    return totals


def gradients(net: Network, sequence: Batch) -> dict[Block, Float[Tensor, "1 tokens D"]]:
    """The gradient of the loss at the output of each block with neurons; none of a weight is computed."""
    x, contexts = net.embed(sequence.ids, sequence.mask)
    outputs = {}
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        for block in net.blocks:
            x = block(x, **contexts[block.layer])
            if block.neurons:
                outputs[block] = x
        log_p = predicting(net.logits(len(net.blocks), x, contexts, sequence.ids), sequence)[0].log_softmax(-1)
        if log_p.isnan().any():
            require_finite(net.model.named_parameters())
            raise ValueError(f"calibration sequence {sequence.first_sequence} has logits with a NaN; use a wider dtype")
        targets = drawn(log_p.detach(), sequence.first_sequence)
        loss = -log_p.gather(1, targets[:, None]).sum()
        return dict(zip(outputs, torch.autograd.grad(loss, [*outputs.values()]), strict=True))


def drawn(log_p: Float[Tensor, "predicted vocabulary"], seed: int) -> Int64[Tensor, " predicted"]:
    """A token for each prediction, as probable as the model says; drawn on the CPU, so all devices draw alike."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(log_p.exp().cpu(), 1, generator=generator).flatten().to(log_p.device)
