"""Beyond the paper: fewer neurons in each MLP, and the best W_out for the neurons that are left.

Nobody else reads what an MLP computes inside. So neurons can be deleted without rotations and adapters, and the
architecture stays the same, with a smaller intermediate size. With H, C and w of `inner`, deleted neurons M and left
neurons K, the best W_out is the least-squares solution, shrunk towards plain deletion by the ridge lambda:

    W_K  <-  argmin_W || diag(w) (H W_out - H_K W) ||^2 + lambda || W - W_K ||^2
          =  W_K - A_KM A_MM^-1 W_M,          A = (C + lambda I)^-1

To delete a single neuron i costs ||W_i||^2 / A_ii, the saliency of the optimal brain surgeon (Hassibi and Stork 1993).
The cost depends on the other neurons, so the cheapest go in rounds, and A and W_out are updated after each. In a
mixture of experts, every expert loses the same number of neurons; which ones is decided for each expert.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float64, Int64
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..architecture.blocks import Block
from ..architecture.configuration import own_config
from ..architecture.network import Network, inference, network
from ..calibration import Calibration
from ..checks import require_flag, require_number
from ..corpus.batches import Batch, Tokens, token_batches
from ..options import HELD_OUT, SlicingOptions, slice_width
from ..rotation import changing, require_whole
from . import reconstruction
from .fisher import fisher_metrics
from .inner import Walk, block_moments, keep_inner, output_matrix, places_of_neurons, refit, with_ridge

ROUNDS = 32  # at most so many, in which the neurons are deleted
RIDGE = 1e-2  # of the mean of C's diagonal; between 1e-4 and 1e-1 little depends on it (notebooks/measure/ridges.py)


def least_harmful(
    C: Float64[Tensor, "*experts n n"],
    W: Float64[Tensor, "*experts n D"],
    delete: int,
    candidates: slice,
    ridge: float | None = None,
    lost: list[float] | None = None,
    metric: Float64[Tensor, "D D"] | None = None,
) -> tuple[Int64[Tensor, "*experts kept"], Float64[Tensor, "*experts kept D"]]:
    """The inner dimensions that stay when `delete` of the candidates go, and W_out for them.

    Args:
        candidates: the neurons; attention's inner dimensions and the column of ones stay.
        ridge: `RIDGE` unless given.
        lost: a list that gets the error added by each round.
        metric: how much each direction of the output counts (`fisher`); without it, all count the same.
    """
    if C.ndim == 3:  # each expert by itself
        pairs = [least_harmful(*own, delete, candidates, ridge, lost, metric) for own in zip(C, W, strict=True)]
        return tuple(map(torch.stack, zip(*pairs, strict=True)))
    A = torch.cholesky_inverse(torch.linalg.cholesky(with_ridge(C, RIDGE if ridge is None else ridge)))
    D = W.shape[1]  # with M = R R^T, W R stands beside W: the squared length of its row i is W_i M W_i^T
    W = W.clone() if metric is None else torch.cat([W, W @ torch.linalg.cholesky(metric)], dim=1)
    gone = torch.zeros(len(C), dtype=torch.bool, device=C.device)
    may_go = torch.zeros_like(gone)
    may_go[candidates] = True
    rounds = min(ROUNDS, delete)
    for i in range(rounds):
        count = delete * (i + 1) // rounds - delete * i // rounds
        costs = W[:, -D:].square().sum(1) / A.diagonal()
        M = costs.masked_fill(gone | ~may_go, torch.inf).argsort(stable=True)[:count]
        L, across = torch.linalg.cholesky(A[M][:, M]), A[:, M]
        solved = torch.cholesky_solve(W[M], L)  # A_MM^-1 W_M
        if lost is not None:
            lost.append((W[M] * solved)[:, :D].sum().item())
        # In place, for all rows: those of M become zero up to rounding. Copies without them would take longer.
        W.addmm_(across, solved, alpha=-1)
        A.addmm_(across, torch.cholesky_solve(across.T, L), alpha=-1)
        gone[M] = True
    kept = (~gone).nonzero().flatten()
    return kept, W[kept, :D]


def solve_output(
    block: Block,
    C: Float64[Tensor, "*experts n n"],
    B: Float64[Tensor, "n D"] | None,
    delete: int,
    metric: Float64[Tensor, "D D"] | None = None,
) -> tuple[Int64[Tensor, "*experts kept"], Float64[Tensor, "*experts kept D"]]:
    """The inner dimensions of a block that stay when so many neurons are deleted, and W_out for them.

    Args:
        C, B: as `block_moments` has them; with B it aims at the dense network's signal, not at the block's own output.
        metric: as in `least_harmful`.
    """
    W, kept = output_matrix(block), torch.arange(C.shape[-1], device=C.device).expand(C.shape[:-1])
    if delete:
        before = W
        kept, W = least_harmful(C, W, delete, places_of_neurons(block), metric=metric)
        if B is not None:
            B = B[kept] + C[kept] @ before - C[kept][:, kept] @ W  # what is missing now
            C = C[kept][:, kept]
    return kept, W if B is None else W + refit(C, B)


def solve_block(
    walk: Walk,
    block: Block,
    delete: int,
    reconstruct: bool = False,
    metric: Float64[Tensor, "D D"] | None = None,
) -> None:
    """Delete so many neurons of a block, or of each expert, and solve for W_out again, in place.

    Args:
        walk: which has reached the block. With a dense signal the block is repaired too; a mixture isn't.
        reconstruct: then move all of the block's matrices (see `reconstruction`); needs the dense signal.
    """
    learned, held_out = walk.split(HELD_OUT) if reconstruct else (walk, None)
    if delete or (walk.dense is not None and not block.is_mixture):
        solved = solve_output(block, *block_moments(learned, block), delete, metric)
        keep_inner(block, *walk.calibration.agreed(*solved))
    if reconstruct:
        reconstruction.reconstruct(block, learned, held_out)


@torch.no_grad()
def delete_neurons(
    model: PreTrainedModel,
    tokens: Tokens,
    attention_mask=None,
    *,
    neurons: float = 0.25,
    multiple: int = 8,
    repair: bool = False,
    reconstruct: bool = False,
    fisher: bool = False,
    batch_size: int = 8,
    progress: bool = False,
    calibration: Callable[[list[Batch]], Calibration] = Calibration,
) -> PreTrainedModel:
    """Delete a fraction of every MLP's and expert's neurons in a trained model, in place; it keeps its class.

    No norm is fused, a tied head stays tied, and ``model.save_pretrained`` writes an ordinary folder. To slice the
    signal too, give `neurons` to `slice_model`.

    Args:
        tokens, attention_mask, batch_size, progress, calibration: as in `slice_model`.
        neurons: the fraction to delete, 0 <= neurons < 1; the number left is rounded down to a multiple of `multiple`.
        repair, reconstruct, fisher: as in `SlicingOptions`.

    Returns the same model object.

    Raises:
        ValueError: the fraction leaves nothing; the model is fused already, or its config has no entry for the number
            of neurons; the tokens don't fit. The model is then unchanged. Also a signal with a NaN or an infinity.
    """
    require_number("neurons", neurons, below=1)
    require_flag("fisher", fisher)
    options = SlicingOptions(neurons=neurons, multiple=multiple, repair=repair, reconstruct=reconstruct)
    net = network(model)
    require_whole(net, "delete neurons of")
    if net.is_fused:
        raise ValueError("this model is fused; give `neurons` to slice_model, or start again from the trained model")
    before, left = common_neurons(net), {}
    for of_experts, count in before.items():
        name = net.family.neurons_in(of_experts)
        if name is None or getattr(net.model.config, name, 0) not in (count, None):
            raise ValueError(
                f"the config of {net.model.config.model_type!r} can't say how many neurons there are, so with fewer it "
                "can't be saved; give `neurons` to slice_model, with slicing=0 if nothing else is to be deleted"
            )
        # transformers multiplies all experts at once, and then their rows must be multiples of 16 bytes.
        row = {torch.float32: 4, torch.bfloat16: 8, torch.float16: 8}.get(model.dtype, 1) if of_experts else 1
        step = math.lcm(multiple, math.gcd(count, row))
        left[of_experts] = slice_width(count, neurons, step)
    calibration_set = calibration(token_batches(model, tokens, attention_mask, batch_size, options.least_batches))
    metrics = fisher_metrics(net, calibration_set) if fisher else {}
    with changing(model), inference(model):
        Z = calibration_set.embed(net)
        dense = calibration_set.embed(net) if repair else None
        for block in tqdm(net.blocks, desc="neurons", disable=not progress, leave=False):
            if repair:
                dense = calibration_set.forward(block, dense)
            delete = before[block.is_mixture] - left[block.is_mixture] if block.neurons else 0
            solve_block(Walk(calibration_set, Z, None, dense), block, delete, reconstruct, metrics.get(block))
            Z = calibration_set.forward(block, Z)
    config = own_config(model)
    for of_experts, count in left.items():
        setattr(config, net.family.neurons_in(of_experts), count)
    return model


def common_neurons(net: Network) -> dict[bool, int]:
    """The number of neurons of every MLP (key False) and of every expert (key True), where the network has such."""
    counts = {}
    for block in net.blocks:
        if block.neurons and counts.setdefault(block.is_mixture, block.neurons) != block.neurons:
            different = sorted({block.neurons for block in net.blocks if block.neurons})
            raise ValueError(f"this model's MLPs have different numbers of neurons: {different}")
    return counts
