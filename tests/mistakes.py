"""Wrong versions of minislice's functions, each a mistake that somebody could make, or has made.

A wrong version gets the right function first, then what the right one gets. The table at the end says which property
must fail with it, on which model, and in whose place it is planted: a function is replaced where it is used, for
modules import by name. `test_mistakes.py` tries every row.
"""

import functools
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import adapter_properties as a
import budget_properties as b
import depth_properties as d
import inner_properties as n
import properties as p
import torch
from family_models import FamilyRecipe
from models import Recipe
from torch import nn

from minislice.architecture.blocks import LowRankAdapter, RMSNorm
from minislice.architecture.linears import set_linear, set_weight
from minislice.architecture.modeling import CACHE
from minislice.beyond import experts as inner_experts
from minislice.beyond.inner import output_matrix
from minislice.beyond.rulers import PROBE
from minislice.corpus.batches import token_batches
from minislice.fusion import bare, subtract_mean

OPT, LLAMA, PHI = (Recipe(family, heads=4, head_dim=4, hidden=20, seed=7) for family in ("opt", "llama", "phi"))
thin_eps, other = replace(OPT, eps=1e-3), replace(OPT, seed=6)
left, right = replace(OPT, padding="left"), replace(OPT, padding="right")
three, deep = Recipe("llama", layers=3, heads=4), replace(LLAMA, layers=4, seed=4)
by_layer = FamilyRecipe("smollm3", layers=3, heads=4, kv_heads=2, head_dim=4, seed=3)  # it has RoPE by layer
scaled = FamilyRecipe("granite", heads=4, head_dim=4, seed=3)  # its branches are multiplied by a number
experts = FamilyRecipe("gpt_oss", heads=4, head_dim=4, hidden=20, padding="left", seed=3)  # a mixture of experts
gated = FamilyRecipe("phi3", heads=4, head_dim=4, seed=3)  # its gate and up are one linear


@dataclass(frozen=True)
class Mistake:
    fact: Callable  # the property that must fail
    name: str
    recipe: Recipe
    target: str  # what is replaced: of minislice, or of a file of properties
    version: Callable  # takes the right function first
    claim: str = ""  # a part of the assertion that must fail, in a property that has several
    options: dict = field(default_factory=dict)


def wrong(version: Callable) -> Callable:
    """What makes the wrong function from the right one; of a property, the wrong property."""

    @functools.wraps(version)
    def instead_of(right):
        if isinstance(right, property):
            return property(lambda self: version(right.fget, self))
        return lambda *arguments, **named: version(right, *arguments, **named)

    return instead_of


@wrong
def nothing_done(right, *arguments):
    return None


@wrong
def transposed(right, linear, Q):
    right(linear, Q.T)


# Streaming: one part in memory at a time, and a state on the disk; `test_streaming` and its neighbours plant these.


@wrong
def norms_left_out(right, net, blocks):
    for block in blocks:
        block.norm = bare(block.norm, net)


@wrong
def read_in_float16(right, self, root, device):
    right(self, root, device)
    for parameter in root.parameters():
        parameter.data = parameter.data.half().to(parameter.dtype)


@wrong
def last_layer_left_out(right, self, index):
    return None if index == len(self.net.layers) else right(self, index)


@wrong
def copied_into_place(right, new, target):
    return shutil.copytree(new, target.with_name(f"{target.name}-1")) and right(new, target)


def restored_otherwise(change: Callable) -> Callable:
    """A mistake in what is restored: `change` is called with the slicer."""

    @wrong
    def restore(right, self):
        done = right(self)
        return done + (change(self) or 0) if done else 0

    return restore


generator_forgotten = restored_otherwise(lambda slicer: slicer.generator.manual_seed(0) and 0)
signal_forgotten = restored_otherwise(lambda slicer: [rows.zero_() for rows in slicer.Z.batches] and 0)
part_left_out = restored_otherwise(lambda slicer: 1)
basis_in_float32 = restored_otherwise(lambda slicer: setattr(slicer, "Q", slicer.Q.float().double()))


# What takes more than a line; by the order of the table.


def mean_subtracted_from_every_embedding(right, model):
    embedding = right(model).get_input_embeddings()
    set_weight(embedding, subtract_mean(embedding.weight.detach()))
    return model


def shift_folded_through_scaled_weights(right, norm, linear, kind):
    weight = linear.weight * norm.weight
    set_linear(linear, weight, norm.bias @ weight.T + (0.0 if linear.bias is None else linear.bias))


def head_still_tied(right, model):
    right(model).lm_head.weight = model.get_input_embeddings().weight
    return model


def gaussian_matrix(right, width, generator):
    return torch.randn(width, width, generator=generator).double() / width**0.5


def ascending(right, *arguments):
    return tuple(result.flip(-1) for result in right(*arguments))


def mask_ignored(right, x, mask=None, *total):
    return right(x, None, *total)


def padding_filled_in_place(right, model, ids, mask=None, **options):
    if mask is not None:
        ids[mask == 0] = 0
    return right(model, ids, mask, **options)


def not_shifted(right, model, ids, mask=None):
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    return math.exp(nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))


def batches_weighted_alike(right, model, ids, mask=None, batch_size=8):
    batches = token_batches(model, ids, mask, batch_size)
    return sum(right(model, batch.ids, batch.mask) for batch in batches) / len(batches)


def wrong_polar_factor(right, P, Q_next, k_next):
    P_next, *rest = right(P, Q_next, k_next)
    turn = Q_next[:, :k_next].T @ P_next
    return Q_next[:, :k_next] @ turn.T, *rest


def directions_in_reverse(right, *arguments):
    P_next, U, deficits = right(*arguments)
    return P_next, U.flip(1), deficits


def left_out_without_aligning(right, P, Q_next, k_next, form, *rest):
    P_next, *others = right(P, Q_next, k_next, form, *rest)
    return Q_next[:, :k_next] if form == "none" else P_next, *others


def no_direction_dropped(right, P, Q_next, k_next, *rest):
    P_next, _, lost = right(P, Q_next, k_next, *rest)
    deficits, U = torch.linalg.eigh(torch.eye(k_next) - P.T @ P_next)
    return P_next, LowRankAdapter(U * deficits.clamp(min=0).sqrt(), k_next), lost


def up_keeps_its_first_neurons(right, mlp, kept):
    """Of gate and up in one linear, the gate's rows are the right ones."""
    (linear,), count = mlp.readers, mlp.neurons
    set_weight(linear, linear.weight[torch.cat([kept, torch.arange(len(kept)) + count])])
    set_weight(mlp.writer, mlp.writer.weight[:, kept])


def router_ignored(right, calibration, block, *arguments):
    even = block.experts.register_forward_pre_hook(lambda module, inputs: (*inputs[:2], 0 * inputs[2] + 1))
    moments = right(calibration, block, *arguments)
    even.remove()
    return moments


def experts_rows_left_alone(right, block, *arguments):
    kept, _ = right(block, *arguments)
    W = inner_experts.output_matrix(block)
    return kept, W.gather(1, kept[..., None].expand(-1, -1, W.shape[2]))


def dropped_block_still_runs(right, self, dropped):
    blocks = self.blocks
    right(self, dropped)
    self.blocks = blocks


def only_the_layers_types_cut(right, config, index):
    before = config.no_rope_layers
    right(config, index)
    config.no_rope_layers = before


def layers_keep_their_numbers(right, net, index):
    before = {module: module.layer_idx for module in net.model.modules() if hasattr(module, "layer_idx")}
    right(net, index)
    for module, number in before.items():
        module.layer_idx = number


def measured_once(right, net, batches):
    """Later deletions go by the losses of the whole model."""
    if len(net.layers) == deep.layers:
        net.model.measured = right(net, batches)
    else:
        net.model.measured.remove(min(net.model.measured))
    return net.model.measured


def padding_predicted(right, *others):
    return right(*others[:-1], replace(others[-1], mask=None))


def lines_between_what_was_measured(right, self, left):
    gone = 1 - left / self.neurons
    if gone <= PROBE:
        return self.probed * gone / PROBE
    return self.probed + (self.emptied - self.probed) * (gone - PROBE) / (1 - PROBE)


def in_proportion(right, self, k):
    """From the narrower of the two widths that were measured."""
    D, narrowest = max(self.widths), min(self.widths)
    return self.widths.get(k, self.widths[narrowest] * (D - k) / (D - narrowest))


def biases_of_neurons_forgotten(right, *arguments):
    sizes = right(*arguments)
    return replace(sizes, per_neuron=[size and size - 1 for size in sizes.per_neuron])


NORM = "architecture.blocks.RMSNorm.forward"
LOW_RANK, NONE = {"adapter": "low-rank"}, {"adapter": "none"}
# fmt: off
TABLE: dict[Callable, list[tuple]] = {  # for each property: the fields of `Mistake` after the first
    p.layernorm_is_rmsnorm_of_a_signal_without_mean: [
        ("mean of each column", OPT, "properties.subtract_mean", lambda right, X: X - X.mean(0)),
        ("eps of the wrong size", thin_eps, NORM, lambda right, self, x: right(self, x) / (1 + self.eps))],
    p.rmsnorm_commutes_with_rotations: [
        ("mean subtracted", OPT, NORM, lambda right, self, x: right(self, x - x.mean(-1, True)), "norm(X @ Q) @ Q.T"),
        ("root of the width lost", PHI, NORM, lambda right, self, x: right(self, x) / x.shape[1] ** 0.5,
         "X / X.norm(")],
    p.fusion_preserves_logits: [
        ("eps forgotten", thin_eps, "fusion.bare", lambda right, norm, net: RMSNorm(net.trained_width, 0.0)),
        ("RMSNorm taken for LayerNorm", LLAMA, "properties.fuse", mean_subtracted_from_every_embedding),
        ("positions overlooked", OPT, "fusion.network",
         lambda right, model: replace(right(model), embeddings=right(model).embeddings[:1])),
        ("mean left in the outputs", OPT, "fusion.subtract_mean_from_output", lambda right, linear: None),
        ("shift through scaled weights", PHI, "fusion.fuse_into", shift_folded_through_scaled_weights),
        ("head still tied", OPT, "properties.fuse", head_still_tied)],
    p.one_rotation_preserves_logits: [
        ("transposed", LLAMA, "rotation.fold_reader", lambda right, linear, Q: right(linear, Q.T)),
        ("bias not rotated", OPT, "rotation.fold_writer",
         lambda _, linear, Q: set_weight(linear, Q.T @ linear.weight)),
        ("second output overlooked", PHI, "architecture.blocks.Block.w_out", lambda right, block: right(block)[:1])],
    p.rotation_per_block_preserves_logits: [
        ("adapter missing", LLAMA, "rotation.linear_map", lambda right, S, like: nn.Identity()),
        ("adapter transposed", PHI, "rotation.linear_map", lambda right, S, like: right(S.T, like))],
    p.random_orthogonal_is_orthogonal_and_seeded: [
        ("gaussian matrix", OPT, "properties.random_orthogonal", gaussian_matrix, "Q.T @ Q"),
        ("the global generator", OPT, "properties.random_orthogonal",
         lambda right, width, generator: right(width, torch.default_generator), "equal(Q, again)")],
    p.random_orthogonal_is_haar: [
        ("QR without the sign fix", OPT, "properties.random_orthogonal",
         lambda _, D, seeded: torch.linalg.qr(torch.randn(D, D, generator=seeded).double()).Q, "Q.mean(0)")],
    p.full_width_preserves_logits: [
        ("not folded", OPT, "slicing.fold_reader", lambda right, linear, P: None, "assert_same_logits")],
    p.slicing_is_projection: [
        ("embedding not cut", OPT, "slicing.fold_embedding", lambda right, embedding, P: None),
        ("adapter transposed", OPT, "adapters.linear_map", lambda _, S, like: _(S.T, like), "", {"slice_head": True}),
        ("least components kept", LLAMA, "slicing.principal_components", ascending),
        ("divided by the sliced width", PHI, NORM,
         lambda right, self, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)),
        ("centred", LLAMA, "calibration.covariance", lambda right, x, *rest: right(x - x.mean(dim=(0, 1)), *rest)),
        ("of the norm's input", OPT, "calibration.Calibration.covariance",
         lambda right, self, X, norm, *rest: right(self, X, nn.Identity(), *rest)),
        ("ends aligned", LLAMA, "slicing.make_adapter",
         lambda right, P, Q, k, form, *rest: right(P, Q, k, "low-rank" if P.shape[1] <= k else form, *rest), "",
         {"head": "tied"})],
    p.orientation_does_not_matter: [
        ("gaussian matrix", PHI, "pca.random_orthogonal", gaussian_matrix)],
    p.earlier_rotation_does_not_matter: [
        ("columns as they are", LLAMA, "slicing.principal_components",
         lambda right, C, *dtype: (C.diagonal(), torch.eye(len(C)).double()))],
    p.covariance_is_summed_in_float64: [
        ("only one triangle", OPT, "properties.covariance", lambda right, *rows: right(*rows).triu(),
         "relative_error(first"),
        ("summed in float32", OPT, "properties.covariance",
         lambda _, x, mask=None, *total: (x.flatten(0, -2).T @ x.flatten(0, -2)).double() + sum(total),
         "covariance(rows) - first"),
        ("mask ignored", left, "properties.covariance", mask_ignored, "rows[mask]")],
    p.principal_components_diagonalise: [
        ("ascending", OPT, "properties.principal_components", ascending, "eigenvalues.diff()"),
        ("turned round", OPT, "properties.principal_components",
         lambda right, *given: (right(*given)[0], right(*given)[1].flip(1)), "eigenvalues.diag() @ Q.T")],
    p.variance_adds_up: [
        ("ascending", OPT, "slicing.principal_components", ascending, "eigenvalues.diff()"),
        ("turned round", PHI, "slicing.principal_components",
         lambda right, *given: (right(*given)[0], right(*given)[1].flip(1)), "kept + discarded")],
    p.discard_keeps_the_least_that_suffices: [
        ("one less", LLAMA, "slicing.width_keeping", lambda right, *given: max(1, right(*given) - 1),
         "discarded <= d")],
    p.padding_is_not_counted: [
        ("mask ignored", left, "calibration.covariance", mask_ignored, "assert_same_logits"),
        ("padding attended to", left, "architecture.network.Network.embed",
         lambda right, self, ids, mask=None: right(self, ids), "assert_same_logits"),
        ("filled in place", right, "properties.slice_model", padding_filled_in_place, "torch.equal(ids, before[0])")],
    p.batches_do_not_matter: [
        ("averaged over the batch", LLAMA, "calibration.covariance",
         lambda right, x, mask, total: right(x, mask) / len(x) + (0 if total is None else total),
         "assert_same_logits"),
        ("batches weighted alike", OPT, "properties.perplexity", batches_weighted_alike, "isclose(one, other")],
    p.perplexity_is_exp_of_transformers_loss: [
        ("not shifted", OPT, "properties.perplexity", not_shifted),
        ("padding predicted", right, "likelihood.token_batches",
         lambda right, *tokens: [replace(batch, mask=None) for batch in right(*tokens)])],
    p.cached_generation_equals_uncached: [
        ("cache not handed on", PHI, "architecture.blocks.Block.branch",
         lambda right, self, x, **context: right(self, x, **{**context, CACHE: None}), "cached.")],
    p.tied_head_is_exact: [
        ("scale left out", LLAMA, "architecture.heads.TiedHead.forward",
         lambda right, self, x: right(self, x / self.alpha), "same_logits"),
        ("mean left in the embedding", PHI, "architecture.heads.CentredEmbedding.forward",
         lambda right, *given: nn.Embedding.forward(*given), "assert_same_logits")],
    p.default_head_is_tied_where_it_can_be: [
        ("never a tie", OPT, "options.tie_obstacle", lambda right, net: "is never kept", "get_output_embeddings")],
    p.approximate_adapters_carry_close_directions_whole: [
        ("loss forgotten", OPT, "calibration.Calibration.add", lambda right, *given: None, "", NONE),
        ("in reverse", LLAMA, "adapters.align", directions_in_reverse, "", {**LOW_RANK, "tolerance": 0.3})],
    a.adapter_has_unit_singular_values: [
        ("not normalised", LLAMA, "slicing.principal_components",
         lambda right, *given: (right(*given)[0], right(*given)[1] * right(*given)[0].sqrt()), "cosines.max()")],
    a.alignment_makes_the_adapter_symmetric: [
        ("wrong polar factor", LLAMA, "adapter_properties.align", wrong_polar_factor, "S[:, :k].T"),
        ("in reverse", LLAMA, "adapter_properties.align", directions_in_reverse, "U @ deficits.diag()")],
    a.exact_low_rank_equals_full: [
        ("not a root", PHI, "adapters.LowRankAdapter", lambda right, A, *rest: right(A * A.norm(dim=0), *rest)),
        ("next basis not aligned", LLAMA, "slicing.make_adapter",
         lambda right, P, Q, k, *rest: (Q[:, :k], *right(P, Q, k, *rest)[1:]))],
    a.none_equals_every_direction_dropped: [
        ("not aligned", OPT, "slicing.make_adapter", left_out_without_aligning, "same_logits", {"slice_head": True})],
    a.rank_is_at_most_what_was_deleted: [
        ("no direction dropped", LLAMA, "slicing.make_adapter", no_direction_dropped, "width - k, k", {"width": 15})],
    a.parameter_counts_follow_the_formulas: [
        ("always full", LLAMA, "slicing.make_adapter",
         lambda right, P, Q_next, k_next, form, *rest: right(P, Q_next, k_next, "full", *rest), "k * rank", LOW_RANK)],
    n.cheapest_neuron_goes_first: [
        ("only by norm", other, "inner_properties.least_harmful",
         lambda right, C, *rest: right(0 * C + torch.eye(len(C)), *rest))],
    n.nearly_the_best_of_all_subsets_is_kept: [
        ("only by norm", other, "inner_properties.least_harmful",
         lambda right, C, *rest: right(0 * C + torch.eye(len(C)), *rest))],
    n.solved_output_is_least_squares: [
        ("plainly deleted", OPT, "inner_properties.least_harmful",
         lambda right, C, W, *rest: ((kept := right(C, W, *rest)[0]), W[kept]), "solved, best")],
    n.refit_is_least_squares: [
        ("ridge forgotten", OPT, "inner_properties.refit", lambda right, C, B, ridge: right(C, B, 0.0))],
    n.moments_are_weighted_sums: [
        ("padding counted", OPT, "inner_properties.moments",
         lambda right, h, y, x, mask, add_to=None: right(h, y, x, None, add_to))],
    n.fusing_first_changes_nothing: [
        ("a branch's number overlooked", scaled, "beyond.inner.output_matrix",
         lambda right, block: right(block) / block.scale, "", {"repair": True})],
    n.idle_neurons_can_go: [
        ("none deleted", OPT, "beyond.neurons.keep_inner", lambda _, *given: None, "2 * block", {"slicing": 0}),
        ("up keeps the first", gated, "beyond.inner.keep_neurons", up_keeps_its_first_neurons, "assert_same_logits"),
        ("all as the first expert", experts, "beyond.experts.keep_experts_neurons",
         lambda right, experts, kept: right(experts, kept[:1].expand_as(kept)), "assert_same_logits")],
    n.experts_moments_are_weighted_sums: [
        ("router ignored", experts, "beyond.experts.block_moments", router_ignored)],
    n.experts_keep_what_is_best_for_each: [
        ("W_out as it was", experts, "inner_properties.solve_output", experts_rows_left_alone, "best")],
    n.nothing_lost_is_nothing_repaired: [
        ("one block late", OPT, "beyond.inner.block_moments",
         lambda right, held, block, layer, Z, P=None, wanted=None: right(held, block, layer, Z, P, Z))],
    n.repair_brings_the_signal_nearer: [
        ("the other sign", PHI, "beyond.neurons.refit", lambda right, *given: -right(*given)),
        ("inputs in reverse", LLAMA, "beyond.inner.moments", lambda right, h, *rest: right(h.flip(-1), *rest))],
    n.dropped_block_adds_nothing: [
        ("the next one dropped", other, "architecture.network.Network.numbered",
         lambda right, self, numbers: right(self, [number + 1 for number in numbers]), "dropped == [number]"),
        ("still runs", LLAMA, "architecture.blocks.BlockLayer.drop", dropped_block_still_runs, "assert_same_logits")],
    d.deleting_no_layer_changes_nothing: [
        ("one more", OPT, "depth_properties.delete_layers",
         lambda right, *given, layers, **options: right(*given, layers=layers + 1, **options), "== recipe.layers")],
    d.a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing: [
        ("the layer behind left out", deep, "depth_properties.losses_without_each",
         lambda right, *given: [*right(*given)[1:], right(*given)[0]], "torch.tensor(expected)"),
        ("padding predicted", left, "beyond.depth.prediction_losses", padding_predicted, "torch.tensor(expected)")],
    d.each_deleted_layer_hurts_least: [
        ("another layer deleted", OPT, "beyond.depth.delete_layer",
         lambda right, net, index: right(net, (index + 1) % len(net.layers)), "assert_same_logits"),
        ("measured once", deep, "beyond.depth.losses_without_each", measured_once, "min(losses)")],
    d.a_shorter_model_is_saved_by_its_own_class: [
        ("only the layers' types cut", by_layer, "beyond.depth.shorten", only_the_layers_types_cut, "logits(again")],
    d.a_shorter_model_generates_the_same_with_a_cache: [
        ("layers keep their numbers", deep, "beyond.depth.delete_layer", layers_keep_their_numbers, "layers - 1")],
    b.divergence_is_what_is_lost_of_the_log_likelihood: [
        ("padding predicted", left, "budget_properties.log_probabilities", padding_predicted),
        ("the other way round", OPT, "budget_properties.divergences", lambda right, p, q: right(q, p))],
    b.cost_of_neurons_is_a_power_of_the_energy_lost: [
        ("lines between", OPT, "beyond.rulers.Cost.of", lines_between_what_was_measured, "max(powers)")],
    b.cost_of_a_width_is_a_power_of_the_share_deleted: [
        ("in proportion", OPT, "beyond.budget.Prices.of_width", in_proportion, "cost(48)")],
    b.measured_costs_are_those_of_whole_models: [
        ("bias overlooked", OPT, "beyond.rulers.has_bias", lambda right, block: False, "found, fewer"),
        ("the next block left out too", LLAMA, "beyond.rulers.logits_behind",
         lambda right, net, place, *rest: right(net, place + (place > 0), *rest), "cost.dropped"),
        ("W_out as it was", PHI, "beyond.rulers.solve_output",
         lambda right, block, *rest: ((kept := right(block, *rest)[0]), output_matrix(block)[kept]), "found, fewer")],
    b.sizes_are_those_of_the_sliced_model: [
        ("biases forgotten", OPT, "budget_properties.sizes_of", biases_of_neurons_forgotten, "next(gone)"),
        ("width ignored", PHI, "beyond.allocation.sliced_config",
         lambda right, config, **options: right(config, **{**options, "width": config.hidden_size}),
         "sizes.total == ")],
    b.chosen_mixture_is_nearly_the_cheapest: [
        ("elsewhere forgotten", OPT, "beyond.allocation.Sizes.elsewhere", lambda right, self: 0, "< size <="),
        ("dropping is free", OPT, "budget_properties.cheapest",
         lambda right, sizes, costs, *rest, **more: right(sizes, [replace(c, dropped=0) for c in costs], *rest, **more),
         "choice.cost"),
        ("no block may go", replace(OPT, seed=4), "budget_properties.cheapest",
         lambda right, *given, may_drop: right(*given, may_drop=()), "excesses")],
    b.plan_says_what_is_left: [
        ("slack on the other side", three, "beyond.budget.cheapest",
         lambda right, sizes, costs, target, slack, *rest: right(sizes, costs, target + slack, slack, *rest),
         "<= 0.65 * dense"),
        ("the first block may go", three, "beyond.budget.cheapest",
         lambda right, *given: right(*given[:-1], {*given[-1], 0}), "0 not in"),
        ("the last block may go", three, "beyond.budget.cheapest",
         lambda right, sizes, *rest: right(sizes, *rest[:-1], {*rest[-1], len(sizes.blocks) - 1}),
         "== plan.parameters")],
}
# fmt: on
MISTAKES = [Mistake(fact, *row) for fact, rows in TABLE.items() for row in rows]
