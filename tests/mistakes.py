"""Wrong versions of minislice's functions, each a mistake that somebody could make, or has made.

A wrong version gets the right function first, then what the right one gets. `planted` says where it is planted (a
function is patched where it is used, for modules import by name) and which property must fail then; `test_mistakes.py`
tries it.
"""

import functools
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import adapter_properties as a
import budget_properties as b
import depth_properties as d
import inner_properties as n
import properties as p
import torch
from family_models import FamilyRecipe
from models import VOCABULARY, Recipe
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
thin_eps, tied = replace(OPT, eps=1e-3), replace(OPT, tied=True)
other = replace(OPT, seed=6)
left, right = replace(OPT, padding="left"), replace(OPT, padding="right")
three = Recipe("llama", layers=3, heads=4)
deep = replace(LLAMA, layers=4, seed=4)
by_layer = FamilyRecipe("smollm3", layers=3, heads=4, kv_heads=2, head_dim=4, seed=3)  # which has RoPE by layer
scaled = FamilyRecipe("granite", heads=4, head_dim=4, seed=3)  # whose branches are multiplied by a number
experts = FamilyRecipe("gpt_oss", heads=4, head_dim=4, hidden=20, padding="left", seed=3)  # a mixture of them
gated = FamilyRecipe("phi3", heads=4, head_dim=4, seed=3)  # whose gate and up are one linear
low_rank, none = {"adapter": "low-rank"}, {"adapter": "none"}


@dataclass(frozen=True)
class Mistake:
    version: Callable  # takes the right function, returns the wrong one
    target: str
    fact: Callable  # the property that must fail
    recipe: Recipe
    options: dict = field(default_factory=dict)
    claim: str = ""  # of the assertion that must fail, in a property that has several

    @property
    def name(self) -> str:
        return f"{self.target} {self.version.__name__.replace('_', ' ')} breaks {self.fact.__name__}"


MISTAKES: list[Mistake] = []


def wrong(version: Callable) -> Callable:
    """What makes the wrong function from the right one; of a property, the wrong property."""

    @functools.wraps(version)
    def instead_of(right):
        if isinstance(right, property):
            return property(lambda self: version(right.fget, self))
        return lambda *arguments, **named: version(right, *arguments, **named)

    return instead_of


def planted(target: str, *arguments, **options) -> Callable:
    """Plant a version in place of `target`; the rest are the fields of `Mistake`."""
    place = target if target.split(".")[0].endswith("properties") else f"minislice.{target}"

    def plant(version: Callable) -> Callable:
        version = version if hasattr(version, "__wrapped__") else wrong(version)
        MISTAKES.append(Mistake(version, place, *arguments, **options))
        return version

    return plant


def is_head(linear):
    return linear.out_features == VOCABULARY


# Section 3.2: fusion


@planted("fusion.bare", p.fusion_preserves_logits, thin_eps)
def eps_forgotten(right, norm, net):
    return RMSNorm(net.trained_width, 0.0)


@planted("architecture.blocks.RMSNorm.forward", p.layernorm_is_rmsnorm_of_a_signal_without_mean, thin_eps)
def eps_outside_the_root(right, self, x):
    return x / ((x.square().sum(-1, keepdim=True) / self.trained_width).sqrt() + self.eps)


@planted("properties.subtract_mean", p.layernorm_is_rmsnorm_of_a_signal_without_mean, OPT)
def mean_of_each_column(right, X):
    return X - X.mean(0)


@planted("architecture.blocks.RMSNorm.forward", p.rmsnorm_commutes_with_rotations, OPT, claim="norm(X @ Q) @ Q.T")
def mean_subtracted_again(right, self, x):
    return right(self, x - x.mean(-1, keepdim=True))


@planted("architecture.blocks.RMSNorm.forward", p.rmsnorm_commutes_with_rotations, LLAMA, claim="norm(X @ Q) @ Q.T")
def norm_over_the_tokens(right, self, x):
    return x * torch.rsqrt(x.square().mean(0) + self.eps)


@planted("architecture.blocks.RMSNorm.forward", p.rmsnorm_commutes_with_rotations, PHI, claim="X / X.norm(")
def root_of_the_width_lost(right, self, x):
    return right(self, x) / self.trained_width**0.5


@planted("properties.fuse", p.fusion_preserves_logits, LLAMA)
def mean_subtracted_from_every_embedding(right, model):
    embedding = right(model).get_input_embeddings()
    set_weight(embedding, subtract_mean(embedding.weight.detach()))
    return model


@planted("fusion.network", p.fusion_preserves_logits, OPT)
@planted("rotation.network", p.one_rotation_preserves_logits, OPT)
def positions_overlooked(right, model):
    net = right(model)
    return replace(net, embeddings=net.embeddings[:1])


@planted("slicing.fold_embedding", p.slicing_is_projection, OPT)
@planted("fusion.subtract_mean_from_output", p.fusion_preserves_logits, OPT)
@planted("beyond.neurons.keep_inner", n.idle_neurons_can_go, OPT, {"slicing": 0}, claim="2 * block.neurons")
@planted("calibration.Calibration.add", p.approximate_adapters_carry_close_directions_whole, OPT, none)
def nothing_done(right, *arguments):
    return None


@planted("fusion.subtract_mean_from_output", p.fusion_preserves_logits, PHI)
def output_bias_keeps_its_mean(right, linear):
    set_weight(linear, subtract_mean(linear.weight.T).T)


@planted("fusion.fuse_into", p.fusion_preserves_logits, OPT)
def shift_not_folded_into_the_head(right, norm, linear, kind):
    bias = linear.bias
    right(norm, linear, kind)
    if is_head(linear):
        linear.bias = bias


@planted("fusion.fuse_into", p.fusion_preserves_logits, PHI)
def shift_folded_through_scaled_weights(right, norm, linear, kind):
    weight = linear.weight * norm.weight
    set_linear(linear, weight, norm.bias @ weight.T + (0.0 if linear.bias is None else linear.bias))


@planted("fusion.fuse_into", p.fusion_preserves_logits, LLAMA)
def scale_forgotten(right, norm, linear, kind):
    weight = linear.weight
    right(norm, linear, kind)
    set_weight(linear, weight)


@planted("fusion.fuse_into", p.fusion_preserves_logits, OPT)
def scale_on_the_output_side(right, norm, linear, kind):
    weight = linear.weight
    right(norm, linear, kind)
    if weight.shape[0] == weight.shape[1]:
        set_weight(linear, weight * norm.weight[:, None])


@planted("fusion.fuse_into", p.fusion_preserves_logits, LLAMA)
def done_twice(right, *arguments):
    right(*arguments)
    right(*arguments)


@planted("properties.fuse", p.fusion_preserves_logits, tied)
def head_still_tied(right, model):
    right(model).lm_head.weight = model.get_input_embeddings().weight
    return model


# Sections 3.1 and 3.3: rotation


@planted("rotation.fold_reader", p.one_rotation_preserves_logits, LLAMA)
def transposed(right, linear, Q):
    right(linear, Q.T)


@planted("rotation.fold_writer", p.one_rotation_preserves_logits, OPT)
@planted("slicing.fold_writer", p.full_width_preserves_logits, PHI, claim="assert_same_logits")
def output_bias_not_rotated(right, linear, Q):
    set_weight(linear, Q.T @ linear.weight)


@planted("architecture.blocks.Block.w_out", p.one_rotation_preserves_logits, PHI)
def second_output_overlooked(right, block):
    return right(block)[:1]


@planted("rotation.fold_reader", p.one_rotation_preserves_logits, tied)
def head_rotated_twice(right, linear, Q):
    for _ in range(1 + is_head(linear)):
        right(linear, Q)


@planted("rotation.fold_reader", p.one_rotation_preserves_logits, PHI)
@planted("slicing.fold_reader", p.full_width_preserves_logits, OPT, claim="assert_same_logits")
def head_not_rotated(right, linear, Q):
    return None if is_head(linear) else right(linear, Q)


@planted("rotation.linear_map", p.rotation_per_block_preserves_logits, LLAMA)
def adapter_missing(right, S, like):
    return nn.Identity()


@planted("rotation.linear_map", p.rotation_per_block_preserves_logits, PHI)
@planted("adapters.linear_map", p.slicing_is_projection, OPT, {"slice_head": True})
def adapter_transposed(right, S, like):
    return right(S.T, like)


@planted("properties.random_orthogonal", p.random_orthogonal_is_orthogonal_and_seeded, OPT, claim="Q.T @ Q")
@planted("rotation.random_orthogonal", p.one_rotation_preserves_logits, OPT)
@planted("pca.random_orthogonal", p.orientation_does_not_matter, PHI)
def gaussian_matrix(right, width, generator):
    return torch.randn(width, width, generator=generator).double() / width**0.5


@planted("properties.random_orthogonal", p.random_orthogonal_is_orthogonal_and_seeded, OPT, claim="equal(Q, again)")
def from_the_global_generator(right, width, generator):
    return right(width, torch.default_generator)


@planted("properties.random_orthogonal", p.random_orthogonal_is_haar, OPT, claim="Q.mean(0)")
def qr_without_the_sign_fix(right, width, generator):
    return torch.linalg.qr(torch.randn(width, width, generator=generator).double()).Q


@planted("properties.random_orthogonal", p.random_orthogonal_is_haar, OPT, claim="Q.mean(0)")
def qr_of_a_uniform_matrix(right, width, generator):
    return torch.linalg.qr(torch.rand(width, width, generator=generator).double()).Q


# Section 3.4: principal components and slicing


@planted("properties.principal_components", p.principal_components_diagonalise, OPT, claim="eigenvalues.diff()")
@planted("slicing.principal_components", p.slicing_is_projection, LLAMA)
@planted("slicing.principal_components", p.variance_adds_up, OPT, claim="eigenvalues.diff()")
def ascending(right, *arguments):
    return tuple(result.flip(-1) for result in right(*arguments))


@planted("properties.principal_components", p.principal_components_diagonalise, OPT, claim="eigenvalues.diag() @ Q.T")
@planted("slicing.principal_components", p.variance_adds_up, PHI, claim="kept + discarded")
def only_eigenvalues_turned_round(right, *arguments):
    eigenvalues, Q = right(*arguments)
    return eigenvalues, Q.flip(1)


@planted("slicing.principal_components", a.adapter_has_unit_singular_values, LLAMA, claim="cosines.max()")
def eigenvectors_not_normalised(right, *arguments):
    eigenvalues, Q = right(*arguments)
    return eigenvalues, Q * eigenvalues.sqrt()


@planted("slicing.principal_components", p.earlier_rotation_does_not_matter, LLAMA)
def columns_of_largest_norm(right, C, *dtype):
    norms, order = C.diagonal().sort(descending=True)
    return norms, torch.eye(len(C), dtype=C.dtype)[:, order]


@planted("architecture.blocks.RMSNorm.forward", p.slicing_is_projection, PHI)
def divided_by_the_sliced_width(right, self, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


@planted("calibration.covariance", p.slicing_is_projection, LLAMA)
def centred(right, x, *rest):
    return right(x - x.mean(dim=(0, 1)), *rest)


@planted("calibration.Calibration.covariance", p.slicing_is_projection, OPT)
def of_the_norms_input(right, self, X, norm, *rest):
    return right(self, X, nn.Identity(), *rest)


@planted("calibration.covariance", p.batches_do_not_matter, LLAMA, claim="assert_same_logits")
def averaged_over_the_batch(right, x, mask, total):
    return right(x, mask) / len(x) + (0 if total is None else total)


@planted("properties.covariance", p.covariance_is_summed_in_float64, OPT, claim="covariance(rows) - first")
def last_tokens_left_out(right, x, mask=None):
    rows = x.flatten(0, -2)
    return right(rows[: len(rows) // 1024 * 1024])


@planted("properties.covariance", p.covariance_is_summed_in_float64, OPT, claim="relative_error(first")
def only_one_triangle(right, *arguments):
    return right(*arguments).triu()


@planted("properties.covariance", p.covariance_is_summed_in_float64, OPT, claim="covariance(rows) - first")
def products_in_float32(right, x, mask=None, *total):
    return (x.flatten(0, -2).T @ x.flatten(0, -2)).double() + sum(total)


@planted("properties.covariance", p.covariance_is_summed_in_float64, left, claim="rows[mask]")
@planted("calibration.covariance", p.padding_is_not_counted, left, claim="assert_same_logits")
def mask_ignored(right, x, mask=None, *total):
    return right(x, None, *total)


@planted("architecture.network.Network.embed", p.padding_is_not_counted, left, claim="assert_same_logits")
def padding_attended_to(right, self, ids, mask=None):
    return right(self, ids)


@planted("properties.slice_model", p.padding_is_not_counted, right, claim="torch.equal(ids, before[0])")
def padding_filled_in_place(right, model, ids, mask=None, **options):
    if mask is not None:
        ids[mask == 0] = 0
    return right(model, ids, mask, **options)


@planted("slicing.width_keeping", p.discard_keeps_the_least_that_suffices, LLAMA, claim="discarded <= discard")
def one_less(right, *arguments):
    return max(1, right(*arguments) - 1)


# Section 4: evaluation


@planted("properties.perplexity", p.perplexity_is_exp_of_transformers_loss, OPT)
def not_shifted(right, model, ids, mask=None):
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
    return math.exp(nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()))


@planted("likelihood.token_batches", p.perplexity_is_exp_of_transformers_loss, right)
def padding_predicted(right, *arguments):
    return [replace(batch, mask=None) for batch in right(*arguments)]


@planted("properties.perplexity", p.batches_do_not_matter, OPT, claim="isclose(one, other")
def batches_weighted_alike(right, model, ids, mask=None, batch_size=8):
    batches = token_batches(model, ids, mask, batch_size)
    return sum(right(model, batch.ids, batch.mask) for batch in batches) / len(batches)


@planted("architecture.blocks.Block.branch", p.cached_generation_equals_uncached, PHI, claim="cached.")
def cache_not_handed_on(right, self, x, **context):
    return right(self, x, **{**context, CACHE: None})


# Heads


@planted("architecture.heads.TiedHead.forward", p.tied_head_is_exact, LLAMA, claim="assert_same_logits")
def scale_left_out_of_the_head(right, self, x):
    return nn.functional.linear(x if self.beta is None else x + self.beta, self.weight, self.bias)


@planted("architecture.heads.TiedHead.forward", p.tied_head_is_exact, tied, claim="assert_same_logits")
def shift_left_out_of_the_head(right, self, x):
    return nn.functional.linear(x * self.alpha, self.weight, self.bias)


@planted("architecture.heads.CentredEmbedding.forward", p.tied_head_is_exact, PHI, claim="assert_same_logits")
def mean_left_in_the_embedding(right, *arguments):
    return nn.Embedding.forward(*arguments)


@planted("options.tie_obstacle", p.default_head_is_tied_where_it_can_be, tied, claim="get_output_embeddings")
def never_a_tie(right, net):
    return "is never kept"


@planted("slicing.make_adapter", p.slicing_is_projection, LLAMA, {"head": "tied"})
def ends_aligned(right, P, Q_next, k_next, form, *rest):
    return right(P, Q_next, k_next, "low-rank" if P.shape[1] <= k_next else form, *rest)


# Residual adapters


@planted("adapter_properties.align", a.alignment_makes_the_adapter_symmetric, LLAMA, claim="S[:, :k].T")
@planted("adapters.align", a.exact_low_rank_equals_full, LLAMA)
@planted("adapters.align", p.approximate_adapters_carry_close_directions_whole, PHI, none)
def wrong_polar_factor(right, P, Q_next, k_next):
    P_next, *rest = right(P, Q_next, k_next)
    turn = Q_next[:, :k_next].T @ P_next
    return Q_next[:, :k_next] @ turn.T, *rest


@planted("adapter_properties.align", a.alignment_makes_the_adapter_symmetric, LLAMA, claim="U @ deficits.diag()")
@planted("adapters.align", a.exact_low_rank_equals_full, OPT)
@planted("adapters.align", p.approximate_adapters_carry_close_directions_whole, LLAMA, {**low_rank, "tolerance": 0.3})
def directions_in_reverse(right, *arguments):
    P_next, U, deficits = right(*arguments)
    return P_next, U.flip(1), deficits


@planted("adapters.LowRankAdapter", a.exact_low_rank_equals_full, PHI)
def deficit_without_its_root(right, A, *rest):
    return right(A * A.norm(dim=0), *rest)


@planted("slicing.make_adapter", a.exact_low_rank_equals_full, LLAMA)
def next_basis_left_as_it_was(right, P, Q_next, k_next, *rest):
    return Q_next[:, :k_next], *right(P, Q_next, k_next, *rest)[1:]


@planted("slicing.make_adapter", a.none_equals_every_direction_dropped, OPT, {"slice_head": True}, claim="same_logits")
def left_out_without_aligning(right, P, Q_next, k_next, form, *rest):
    P_next, *others = right(P, Q_next, k_next, form, *rest)
    return Q_next[:, :k_next] if form == "none" else P_next, *others


@planted("slicing.make_adapter", a.rank_is_at_most_what_was_deleted, LLAMA, {"width": 15}, claim="width - k, k")
def no_direction_dropped(right, P, Q_next, k_next, *rest):
    P_next, _, E = right(P, Q_next, k_next, *rest)
    deficits, U = torch.linalg.eigh(torch.eye(k_next) - P.T @ P_next)
    return P_next, LowRankAdapter(U * deficits.clamp(min=0).sqrt(), k_next), E


@planted("slicing.make_adapter", a.parameter_counts_follow_the_formulas, LLAMA, low_rank, claim="k * rank")
def always_full(right, P, Q_next, k_next, form, *rest):
    return right(P, Q_next, k_next, "full", *rest)


# Streaming: one part in memory at a time, and a state on the disk


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


@wrong
def covariances_kept_to_oneself(right, self, tensor):
    return tensor


# Beyond the paper: neurons and repair


@planted("inner_properties.least_harmful", n.cheapest_neuron_goes_first, other)
@planted("inner_properties.least_harmful", n.nearly_the_best_of_all_subsets_is_kept, other)
def only_by_norm(right, C, *arguments):
    """Which neurons to keep, from the size of their weights alone."""
    return right(torch.eye(len(C)).to(C), *arguments)


@planted("inner_properties.least_harmful", n.solved_output_is_least_squares, OPT, claim="solved, best")
def plainly_deleted(right, C, W, *arguments):
    kept, _ = right(C, W, *arguments)
    return kept, W[kept]


@planted("inner_properties.refit", n.refit_is_least_squares, OPT)
def ridge_forgotten(right, C, B, ridge):
    return right(C, B, 0.0)


@planted("inner_properties.refit", n.refit_is_least_squares, LLAMA)
@planted("beyond.neurons.refit", n.repair_brings_the_signal_nearer, PHI)
def other_sign(right, *arguments):
    return -right(*arguments)


@planted("inner_properties.moments", n.moments_are_weighted_sums, OPT)
def tokens_unweighted(right, h, y, x, mask, add_to=0):
    return torch.cat([h[mask].T @ h[mask], h[mask].T @ (x - y)[mask]], dim=1) + add_to


@planted("inner_properties.moments", n.moments_are_weighted_sums, OPT)
def padding_counted(right, h, y, x, mask, add_to=None):
    return right(h, y, x, None, add_to)


@planted("beyond.inner.output_matrix", n.fusing_first_changes_nothing, scaled, {"repair": True})
def branchs_number_overlooked(right, block):
    return right(block) / block.scale


@planted("beyond.inner.keep_neurons", n.idle_neurons_can_go, LLAMA, claim="assert_same_logits")
def first_neurons_kept(right, mlp, kept):
    right(mlp, torch.arange(len(kept)))


@planted("beyond.inner.keep_neurons", n.idle_neurons_can_go, gated, claim="assert_same_logits")
def up_keeps_its_first_neurons(right, mlp, kept):
    """Of gate and up in one linear, the gate's rows are the right ones."""
    (linear,), count = mlp.readers, mlp.neurons
    set_weight(linear, linear.weight[torch.cat([kept, torch.arange(len(kept)) + count])])
    set_weight(mlp.writer, mlp.writer.weight[:, kept])


@planted("beyond.inner.keep_neurons", n.idle_neurons_can_go, PHI, claim="assert_same_logits")
def w_in_keeps_its_first_neurons(right, mlp, kept):
    """The neurons that are made are not those that W_out reads."""
    for reader in mlp.readers:
        set_linear(reader, reader.weight[: len(kept)], reader.bias[: len(kept)])
    set_weight(mlp.writer, mlp.writer.weight[:, kept])


@planted("beyond.experts.keep_experts_neurons", n.idle_neurons_can_go, experts, claim="logits")
def all_keep_what_the_first_keeps(right, experts, kept):
    """Every expert loses the neurons that the first one can do without."""
    right(experts, kept[:1].expand_as(kept))


@planted("beyond.experts.keep_experts_neurons", n.idle_neurons_can_go, experts, claim="assert_same")
def gates_and_ups_taken_for_neighbours(right, experts, kept):
    """Rows that lie one half behind the other are looked for side by side, and the other way round."""
    with patch.object(experts, "is_concatenated", not experts.is_concatenated):
        right(experts, kept)


@planted("beyond.experts.block_moments", n.experts_moments_are_weighted_sums, experts)
def router_ignored(right, calibration, block, *arguments):
    """Every expert counts as much for a token."""
    even = block.experts.register_forward_pre_hook(lambda module, inputs: (*inputs[:2], 0 * inputs[2] + 1))
    moments = right(calibration, block, *arguments)
    even.remove()
    return moments


@planted("beyond.experts.block_moments", n.experts_moments_are_weighted_sums, experts)
def padding_counts_as_text(right, calibration, *arguments):
    with patch.object(calibration, "batches", [replace(batch, mask=None) for batch in calibration.batches]):
        return right(calibration, *arguments)


@planted("inner_properties.solve_output", n.experts_keep_what_is_best_for_each, experts, claim="best")
def experts_rows_left_alone(right, block, *arguments):
    """What is left keeps its rows of W_out."""
    kept, _ = right(block, *arguments)
    W = inner_experts.output_matrix(block)
    return kept, W.gather(1, kept[..., None].expand(-1, -1, W.shape[2]))


@planted("beyond.inner.block_moments", n.nothing_lost_is_nothing_repaired, OPT)
def dense_signal_one_block_late(right, calibration, block, layer, Z, P=None, dense=None):
    """The signal before the block is taken for the one behind it."""
    return right(calibration, block, layer, Z, P, Z)


@planted("beyond.inner.moments", n.repair_brings_the_signal_nearer, LLAMA)
def last_input_shuffled(right, h, *arguments):
    return right(h.flip(-1), *arguments)


@planted("architecture.network.Network.numbered", n.dropped_block_adds_nothing, other, claim="dropped == [number]")
def next_one_dropped(right, self, numbers):
    return right(self, [number + 1 for number in numbers])


@planted("architecture.blocks.BlockLayer.drop", n.dropped_block_adds_nothing, LLAMA, claim="assert_same_logits")
def dropped_block_still_runs(right, self, dropped):
    blocks = self.blocks
    right(self, dropped)
    self.blocks = blocks


# Depth removal


@planted("beyond.depth.delete_layer", d.each_deleted_layer_hurts_least, OPT, claim="assert_same_logits")
def another_layer_deleted(right, net, index):
    right(net, (index + 1) % len(net.layers))


@planted("beyond.depth.shorten", d.a_shorter_model_is_saved_by_its_own_class, by_layer, claim="logits(again")
def only_the_layers_types_cut(right, config, index):
    before = config.no_rope_layers
    right(config, index)
    config.no_rope_layers = before


@planted("beyond.depth.delete_layer", d.a_shorter_model_generates_the_same_with_a_cache, deep, claim="layers - 1")
def layers_keep_their_numbers(right, net, index):
    before = {module: module.layer_idx for module in net.model.modules() if hasattr(module, "layer_idx")}
    right(net, index)
    for module, number in before.items():
        module.layer_idx = number


@planted("depth_properties.delete_layers", d.deleting_no_layer_changes_nothing, OPT, claim="== recipe.layers")
def one_more(right, *arguments, layers, **options):
    return right(*arguments, layers=layers + 1, **options)


@planted(
    "depth_properties.losses_without_each",
    d.a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing,
    deep,
    claim="torch.tensor(expected)",
)
def the_layer_behind_left_out(right, *arguments):
    first, *others = right(*arguments)
    return [*others, first]


@planted("beyond.depth.losses_without_each", d.each_deleted_layer_hurts_least, deep, claim="min(losses)")
def the_largest_loss_first(right, *arguments):
    return [-loss for loss in right(*arguments)]


@planted("beyond.depth.losses_without_each", d.each_deleted_layer_hurts_least, deep, claim="min(losses)")
def measured_once(right, net, batches):
    """Later deletions go by the losses of the whole model."""
    if len(net.layers) == deep.layers:
        net.model.measured = right(net, batches)
    else:
        net.model.measured.remove(min(net.model.measured))
    return net.model.measured


@planted("budget_properties.log_probabilities", b.divergence_is_what_is_lost_of_the_log_likelihood, left)
@planted("beyond.rulers.log_probabilities", b.measured_costs_are_those_of_whole_models, left, claim="cost.dropped")
@planted(
    "beyond.depth.prediction_losses",
    d.a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing,
    left,
    claim="torch.tensor(expected)",
)
def padding_predicted_as_well(right, *others):
    return right(*others[:-1], replace(others[-1], mask=None))


# A budget


@planted("budget_properties.divergences", b.divergence_is_what_is_lost_of_the_log_likelihood, OPT)
def the_other_way_round(right, p, q):
    return right(q, p)


@planted("budget_properties.divergences", b.divergence_is_what_is_lost_of_the_log_likelihood, LLAMA)
def only_the_likeliest(right, p, q):
    return p.amax(1) - q.gather(1, p.argmax(1, keepdim=True))[:, 0]


@planted("beyond.rulers.Cost.of", b.cost_of_neurons_is_a_power_of_the_energy_lost, OPT, claim="max(powers)")
def lines_between_what_was_measured(right, self, left):
    gone = 1 - left / self.neurons
    if gone <= PROBE:
        return self.probed * gone / PROBE
    return self.probed + (self.emptied - self.probed) * (gone - PROBE) / (1 - PROBE)


@planted("beyond.rulers.Cost.of", b.cost_of_neurons_is_a_power_of_the_energy_lost, OPT, claim="cost.probed")
def probe_ignored(right, self, left):
    return right(replace(self, probed=self.emptied / 2), left)


@planted("beyond.budget.Prices.of_width", b.cost_of_a_width_is_a_power_of_the_share_deleted, OPT, claim="cost(48)")
def in_proportion(right, self, k):
    """From the narrower of the two widths that were measured."""
    D, narrowest = max(self.widths), min(self.widths)
    return self.widths.get(k, self.widths[narrowest] * (D - k) / (D - narrowest))


@planted("beyond.rulers.has_bias", b.measured_costs_are_those_of_whole_models, OPT, claim="found, fewer")
def bias_overlooked(right, block):
    return False


@planted("beyond.rulers.logits_behind", b.measured_costs_are_those_of_whole_models, LLAMA, claim="cost.dropped")
def next_block_left_out_too(right, net, boundary, *others):
    return right(net, boundary + (boundary > 0), *others)


@planted("beyond.rulers.solve_output", b.measured_costs_are_those_of_whole_models, PHI, claim="found, fewer")
def w_out_not_solved_for(right, block, *others):
    kept, _ = right(block, *others)
    return kept, output_matrix(block)[kept]


@planted("budget_properties.sizes_of", b.sizes_are_those_of_the_sliced_model, OPT, claim="next(gone)")
def biases_of_neurons_forgotten(right, *arguments):
    sizes = right(*arguments)
    return replace(sizes, per_neuron=[size and size - 1 for size in sizes.per_neuron])


@planted("beyond.allocation.sliced_config", b.sizes_are_those_of_the_sliced_model, PHI, claim="sizes.total == ")
def width_ignored(right, config, **options):
    return right(config, **{**options, "width": config.hidden_size})


@planted("beyond.allocation.Sizes.elsewhere", b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="< size <=")
def elsewhere_forgotten(right, self):
    return 0


@planted("budget_properties.cheapest", b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="< size <=")
def blocks_taken_for_alike(right, sizes, *others, **named):
    """The price of a parameter is asked for a block."""
    count = len(sizes.blocks)
    blocks, neurons = ([sum(each) // count] * count for each in (sizes.blocks, sizes.per_neuron))
    return right(replace(sizes, blocks=blocks, per_neuron=neurons), *others, **named)


@planted("budget_properties.block_costs", b.measured_costs_are_those_of_whole_models, OPT, claim="cost.dropped")
def dropping_costs_nothing(right, *arguments):
    return [replace(cost, dropped=0.0) for cost in right(*arguments)]


@planted("budget_properties.cheapest", b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="choice.cost")
def cost_of_dropping_ignored(right, sizes, costs, *others, **named):
    return right(sizes, [replace(cost, dropped=0.0) for cost in costs], *others, **named)


@planted("budget_properties.cheapest", b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="< size <=")
@planted("beyond.budget.cheapest", b.plan_says_what_is_left, three, claim="<= 0.65 * dense")
def slack_on_the_other_side(right, sizes, costs, target, slack, *others, **named):
    return right(sizes, costs, target + slack, slack, *others, **named)


@planted("budget_properties.cheapest", b.chosen_mixture_is_nearly_the_cheapest, replace(OPT, seed=4), claim="excesses")
def no_block_may_go(right, *arguments, may_drop):
    return right(*arguments, may_drop=())


@planted("beyond.budget.cheapest", b.plan_says_what_is_left, three, claim="0 not in")
def first_block_may_go_too(right, *arguments):
    return right(*arguments[:-1], {*arguments[-1], 0})


@planted("beyond.budget.cheapest", b.plan_says_what_is_left, three, claim="== plan.parameters")
def last_block_may_go_too(right, sizes, *others):
    return right(sizes, *others[:-1], {*others[-1], len(sizes.blocks) - 1})
