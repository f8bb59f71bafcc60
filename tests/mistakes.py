"""Wrong versions of minislice's functions, each a mistake that somebody could make, or has made.

A wrong version gets the right function first, then what the right one gets. The table at the end says which property
must fail with it, on which model, and in whose place it is planted: a function is replaced where it is used, for
modules import by name. `test_properties.py` tries every row.
"""

from collections.abc import Callable
from dataclasses import replace

import beyond_properties as b
import properties as p
import torch
from models import Recipe, fixed
from torch import nn

from minislice.architecture.blocks import RMSNorm
from minislice.architecture.families import FAMILIES
from minislice.architecture.linears import set_weight
from minislice.architecture.modeling import CACHE

OPT, LLAMA, PHI = (Recipe(family, heads=4, head_dim=4, hidden=20, seed=7) for family in ("opt", "llama", "phi"))
thin_eps, other, padded = replace(OPT, eps=1e-3), replace(OPT, seed=6), replace(OPT, padding="left")
three, deep = Recipe("llama", layers=3, heads=4), replace(LLAMA, layers=4, seed=4)
by_layer = Recipe("smollm3", layers=3, heads=4, kv_heads=2, head_dim=4, seed=3)  # it has RoPE by layer
experts = Recipe("gpt_oss", heads=4, head_dim=4, hidden=20, padding="left", seed=3)  # a mixture of experts


def wrong(version: Callable) -> Callable:
    """A function that takes the right function, or property, and gives the wrong one."""

    def instead_of(right):
        if isinstance(right, property):
            return property(lambda self: version(right.fget, self))
        return lambda *arguments, **named: version(right, *arguments, **named)

    return instead_of


def only_the_layers_types_cut(right, config, index):
    before = config.no_rope_layers
    right(config, index)
    config.no_rope_layers = before


def layers_keep_their_numbers(right, net, index):
    before = {module: module.layer_idx for module in net.model.modules() if hasattr(module, "layer_idx")}
    right(net, index)
    for module, number in before.items():
        module.layer_idx = number


def entry(**changes):
    return lambda right, config: replace(right(config), **changes)


def norm(**changes):
    return lambda right, config: replace(right(config), norm=replace(right(config).norm, **changes))


def last_expert_stays(right, side, matrices):
    right(side, torch.cat([matrices[:-1], side.matrices()[-1:]]))


def one_layers_context_for_all(right, net, *given):
    signal, contexts = right(net, *given)
    return signal, contexts[:1] * len(contexts)


FAMILY, EXPERTS = "architecture.network.find_family", "architecture.linears.Experts"
PARALLEL = FAMILIES["gpt_neox"].blocks_of(fixed("gpt_neox").config(), 0)
ATTENTION, MIXTURE = FAMILIES["gpt_oss"].blocks
NORM = "architecture.blocks.RMSNorm.forward"
LOW_RANK = {"adapter": "low-rank"}
# fmt: off
# For each property that must fail: the mistake's name, the model, what is replaced (of minislice, or of a file of
# properties), the wrong version, and the property's options if it needs any.
TABLE: dict[Callable, list[tuple]] = {
    p.fusion_preserves_logits: [
        ("mean subtracted", LLAMA, NORM, lambda right, self, x: right(self, x - x.mean(-1, True))),
        ("eps forgotten", thin_eps, "fusion.bare", lambda right, norm, net: RMSNorm(net.trained_width, 0.0)),
        ("mean left in the outputs", OPT, "fusion.subtract_mean_from_output", lambda right, linear: None),
        ("1 + w taken for w", fixed("gemma"), FAMILY, norm(offset=0.0)),
        ("mean left in", fixed("cohere"), FAMILY, norm(subtracts_mean=False)),
        ("the residual multiplier dropped", fixed("granite"), FAMILY, entry(branch_scale=None)),
        ("the second norm of a parallel layer ignored", fixed("falcon", 1), "architecture.blocks.Block.norm_of",
         lambda right, block, name: block.norm),
        ("a sequential layer taken for a parallel one", fixed("gpt_neox", 1), FAMILY, entry(blocks=PARALLEL)),
        ("the embedding's norm forgotten", fixed("bloom"), FAMILY, entry(embedding_norm=None)),
        ("the residual added twice", fixed("bloom"), "architecture.blocks.torch.Tensor.new_zeros",
         lambda right, x, *size, **named: x if size == ((),) else right(x, *size, **named)),
        ("the router not folded", fixed("gpt_oss"), FAMILY,
         entry(blocks=(ATTENTION, replace(MIXTURE, w_in=("mlp.experts",))))),
        ("one expert forgotten", fixed("qwen3_moe"), f"{EXPERTS}Reader.store_matrices", last_expert_stays)],
    p.rotation_preserves_logits: [
        ("bias not rotated", OPT, "rotation.fold_writer",
         lambda right, linear, Q: set_weight(linear, Q.T @ linear.weight)),
        ("second output overlooked", PHI, "architecture.blocks.Block.w_out", lambda right, block: right(block)[:1]),
        ("adapter missing", LLAMA, "rotation.linear_map",
         lambda right, S, like: nn.Identity(), {"per_block": True}),
        ("one expert not rotated", fixed("mixtral"), f"{EXPERTS}Writer.store_matrices", last_expert_stays)],
    p.random_orthogonal_is_haar_and_seeded: [
        ("QR without the sign fix", OPT, "properties.random_orthogonal",
         lambda right, D, seeded: torch.linalg.qr(torch.randn(D, D, generator=seeded).double()).Q)],
    p.full_width_preserves_logits: [("not folded", OPT, "slicing.fold_reader", lambda right, linear, P: None)],
    p.slicing_is_projection: [
        ("one layer's mask for all", fixed("qwen2"), "architecture.network.Network.embed", one_layers_context_for_all),
        ("adapter transposed", OPT, "adapters.linear_map",
         lambda right, S, like: right(S.T, like), {"slice_head": True}),
        ("divided by the sliced width", PHI, NORM,
         lambda right, self, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)),
        ("not a root", PHI, "adapters.LowRankAdapter",
         lambda right, A, *rest: right(A * A.norm(dim=0), *rest), LOW_RANK),
        ("of the norm's input", OPT, "calibration.Calibration.covariance",
         lambda right, self, X, norm, where: right(self, X, nn.Identity(), where))],
    p.orientation_does_not_matter: [
        ("columns as they are", LLAMA, "slicing.principal_components",
         lambda right, C, dtype: (C.diagonal(), torch.eye(len(C)).double()))],
    p.covariance_is_summed_in_float64: [
        ("summed in float32", OPT, "properties.covariance",
         lambda right, x, mask=None, *total: (x.flatten(0, -2).T @ x.flatten(0, -2)).double() + sum(total))],
    p.variance_adds_up: [
        ("turned round", PHI, "slicing.principal_components",
         lambda right, *given: (right(*given)[0], right(*given)[1].flip(1)))],
    p.discard_keeps_the_least_that_suffices: [
        ("one less", LLAMA, "slicing.width_keeping", lambda right, *given: max(1, right(*given) - 1))],
    p.padding_is_not_counted: [
        ("mask ignored", padded, "calibration.covariance",
         lambda right, x, mask=None, *total: right(x, None, *total)),
        ("padding attended to", padded, "architecture.network.Network.embed",
         lambda right, self, ids, mask=None: right(self, ids))],
    p.batches_do_not_matter: [
        ("averaged over the batch", LLAMA, "calibration.covariance",
         lambda right, x, mask, total: right(x, mask) / len(x) + (0 if total is None else total))],
    p.perplexity_is_exp_of_transformers_loss: [
        ("padding predicted", replace(OPT, padding="right"), "likelihood.token_batches",
         lambda right, *tokens: [replace(batch, mask=None) for batch in right(*tokens)])],
    p.cached_generation_equals_uncached: [
        ("cache not handed on", PHI, "architecture.blocks.Block.branch",
         lambda right, self, x, **context: right(self, x, **{**context, CACHE: None}))],
    p.tied_head_is_exact: [
        ("scale left out", LLAMA, "architecture.heads.TiedHead.forward",
         lambda right, self, x: right(self, x / self.alpha)),
        ("mean left in the embedding", PHI, "architecture.heads.CentredEmbedding.forward",
         lambda right, *given: nn.Embedding.forward(*given))],
    p.fitted_head_is_least_squares: [
        ("correlated only", LLAMA, "heads.fitted_map", lambda right, E, W: (E.T @ W).T / E.square().sum())],
    p.approximate_adapters_carry_close_directions_whole: [
        ("loss forgotten", OPT, "calibration.Calibration.add", lambda right, *given: None),
        ("not aligned", OPT, "slicing.make_adapter",
         lambda right, P, Q, k, form, *rest: (Q[:, :k], *right(P, Q, k, form, *rest)[1:]), {"slice_head": True})],
    p.alignment_makes_the_adapter_symmetric: [
        ("in reverse", LLAMA, "properties.align",
         lambda right, *given: (right(*given)[0], right(*given)[1].flip(1), right(*given)[2]))],
    p.adapters_have_the_parameters_of_the_formulas: [
        ("always full", LLAMA, "slicing.make_adapter",
         lambda right, P, Q_next, k_next, form, *rest: right(P, Q_next, k_next, "full", *rest), LOW_RANK)],
    b.nearly_the_best_of_all_subsets_is_kept: [
        ("only by norm", other, "beyond_properties.least_harmful",
         lambda right, C, *rest: right(0 * C + torch.eye(len(C)), *rest))],
    b.solved_output_is_least_squares: [
        ("plainly deleted", OPT, "beyond_properties.least_harmful",
         lambda right, C, W, *rest: ((kept := right(C, W, *rest)[0]), W[kept]))],
    b.refit_is_least_squares: [
        ("ridge forgotten", OPT, "beyond_properties.refit", lambda right, C, B, ridge: right(C, B, 0.0))],
    b.moments_are_weighted_sums: [
        ("padding counted", OPT, "beyond_properties.moments",
         lambda right, h, y, x, mask, add_to=None: right(h, y, x, None, add_to))],
    b.idle_neurons_can_go: [
        ("all as the first expert", experts, "beyond.inner.keep_experts_neurons",
         lambda right, experts, kept: right(experts, kept[:1].expand_as(kept)))],
    b.experts_moments_are_weighted_sums: [
        ("of another expert", experts, "beyond.inner.block_moments",
         lambda right, *given: (right(*given)[0].flip(0), None))],
    b.experts_keep_what_is_best_for_each: [
        ("W_out of another expert", experts, "beyond_properties.solve_output",
         lambda right, *given: (right(*given)[0], right(*given)[1].flip(0)))],
    b.nothing_lost_is_nothing_repaired: [
        ("one block late", OPT, "beyond.neurons.block_moments",
         lambda right, walk, block: right(replace(walk, dense=walk.Z), block))],
    b.repair_brings_the_signal_nearer: [
        ("the other sign", PHI, "beyond.neurons.refit", lambda right, *given: -right(*given))],
    b.held_out_error_never_grows: [
        ("the best pass chosen by what is learned", other, "beyond.reconstruction.reconstruct",
         lambda right, block, learned, held_out: right(block, learned, learned))],
    b.what_is_learned_comes_nearer: [
        ("something else learned", LLAMA, "beyond.reconstruction.reconstruct",
         lambda right, block, *walks: right(block, *(replace(walk, P=walk.P.flip(0)) for walk in walks)))],
    b.a_sum_of_outer_products: [
        ("summed before the product", LLAMA, "beyond.fisher.covariance",
         lambda right, g, mask, total: right(g.sum(1, True), None, total)),
        ("padding predicted", padded, "beyond.fisher.predicting",
         lambda right, logits, batch: right(logits, replace(batch, mask=None)))],
    b.twice_the_divergence: [
        ("the likeliest for a random one", LLAMA, "beyond.fisher.drawn", lambda right, log_p, seed: log_p.argmax(1))],
    b.directions_count_by_the_metric: [
        ("the metric overlooked", LLAMA, "beyond.neurons.torch.cat",
         lambda right, parts, dim=0: right([parts[0], parts[0]], dim))],
    b.dropped_block_adds_nothing: [
        ("the next one dropped", other, "architecture.network.Network.numbered",
         lambda right, self, numbers: right(self, [number + 1 for number in numbers]))],
    b.a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing: [
        ("the layer after left out", deep, "beyond_properties.losses_without_each",
         lambda right, *given: [*right(*given)[1:], right(*given)[0]])],
    b.each_deleted_layer_hurts_least: [
        ("another layer deleted", OPT, "beyond.depth.delete_layer",
         lambda right, net, index: right(net, (index + 1) % len(net.layers)))],
    b.a_shorter_model_is_saved_by_its_own_class: [
        ("only the layers' types cut", by_layer, "beyond.depth.shorten", only_the_layers_types_cut)],
    b.a_shorter_model_generates_the_same_with_a_cache: [
        ("layers keep their numbers", deep, "beyond.depth.delete_layer", layers_keep_their_numbers)],
    b.divergence_is_what_is_lost_of_the_log_likelihood: [
        ("the other way round", OPT, "beyond_properties.divergences", lambda right, p, q: right(q, p))],
    b.cost_of_neurons_is_a_power_of_the_energy_lost: [
        ("in proportion", OPT, "beyond.rulers.Cost.of",
         lambda right, self, left: self.emptied * (1 - left / self.neurons))],
    b.cost_of_a_width_is_a_power_of_the_share_deleted: [
        ("in proportion", OPT, "beyond.rulers.Prices.of_width",
         lambda right, self, k: self.widths.get(k, 2 * self.widths[min(self.widths)]))],
    b.measured_costs_are_those_of_whole_models: [
        ("bias overlooked", OPT, "beyond.rulers.has_bias", lambda right, block: False)],
    b.sizes_are_those_of_the_sliced_model: [
        ("width ignored", PHI, "beyond.budget.sliced_config",
         lambda right, config, **options: right(config, **{**options, "width": config.hidden_size}))],
    b.chosen_mixture_is_nearly_the_cheapest: [
        ("slack on the other side", OPT, "beyond_properties.cheapest",
         lambda right, tables, room, slack: right(tables, room + slack, slack))],
    b.plan_says_what_is_left: [
        ("elsewhere forgotten", three, "beyond.budget.tables_of", lambda right, *given: (0, right(*given)[1])),
        ("slack on the other side", three, "beyond.budget.cheapest",
         lambda right, tables, room, slack: right(tables, room + slack, slack)),
        ("the first block may go", three, "beyond.budget.tables_of",
         lambda right, *given: right(*given[:-1], {*given[-1], 0}))],
}
# fmt: on
