"""Every property can fail: each is run against a planted mistake, where it must, and without it, where it must not."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name

import adapter_properties
import budget_properties
import depth_properties
import inner_properties
import mistakes as wrong
import properties
import pytest
from family_models import FamilyRecipe
from models import Recipe

# What mistakes are planted into: a function is patched where it is used, since modules import by name.
BARE = "minislice.fusion.bare"
FUSE_INTO = "minislice.fusion.fuse_into"
MEAN_OF_OUTPUT = "minislice.fusion.subtract_mean_from_output"
FUSED_NETWORK = "minislice.fusion.network"
RMSNORM = "minislice.architecture.blocks.RMSNorm.forward"
W_OUT = "minislice.architecture.blocks.Block.w_out"
BRANCH = "minislice.architecture.blocks.Block.branch"
EMBED = "minislice.architecture.network.Network.embed"
ROTATED_NETWORK = "minislice.rotation.network"
ROTATE_READER = "minislice.rotation.fold_reader"
ROTATE_WRITER = "minislice.rotation.fold_writer"
ROTATION_ADAPTER = "minislice.rotation.linear_map"
ROTATION = "minislice.rotation.random_orthogonal"
SLICE_READER = "minislice.slicing.fold_reader"
SLICE_WRITER = "minislice.slicing.fold_writer"
EMBEDDING = "minislice.slicing.fold_embedding"
MAKE_ADAPTER = "minislice.slicing.make_adapter"
WIDTH_KEEPING = "minislice.slicing.width_keeping"
COMPONENTS = "minislice.slicing.principal_components"
COVARIANCE = "minislice.calibration.covariance"
SIGNAL_COVARIANCE = "minislice.calibration.Calibration.covariance"
EXCESS = "minislice.calibration.Calibration.add"
ORIENTATION = "minislice.pca.random_orthogonal"
TIE_OBSTACLE = "minislice.options.tie_obstacle"
TIED_HEAD = "minislice.architecture.heads.TiedHead.forward"
TIED_EMBEDDING = "minislice.architecture.heads.CentredEmbedding.forward"
ALIGN = "minislice.adapters.align"
FULL_ADAPTER = "minislice.adapters.linear_map"
LOW_RANK_ADAPTER = "minislice.adapters.LowRankAdapter"
DROP = "minislice.architecture.network.Network.numbered"
SLICE_DROP = "minislice.beyond.slicing.BeyondSlicer.slice_layer"
KEEP_INNER = "minislice.beyond.neurons.keep_inner"
OUTPUT_MATRIX = "minislice.beyond.inner.output_matrix"
KEEP_NEURONS = "minislice.beyond.inner.keep_neurons"
KEEP_EXPERTS = "minislice.beyond.experts.keep_experts_neurons"
ITS_EXPERT_MOMENTS = "minislice.beyond.experts.block_moments"
ITS_SOLVE_OUTPUT = "inner_properties.solve_output"
REFIT = "minislice.beyond.neurons.refit"
MOMENTS = "minislice.beyond.inner.moments"
SLICE_MOMENTS = "minislice.beyond.inner.block_moments"
LOSSES = "minislice.beyond.depth.losses_without_each"
DEPTH_LOSSES = "minislice.beyond.depth.prediction_losses"
DELETE_LAYER = "minislice.beyond.depth.delete_layer"
SHORTEN = "minislice.beyond.depth.shorten"
HOW_MANY = "minislice.beyond.depth._how_many"
COST_OF = "minislice.beyond.rulers.Cost.of"
COST_OF_WIDTH = "minislice.beyond.budget.Prices.of_width"
RULERS_LOGITS = "minislice.beyond.rulers.logits_behind"
ITS_DIVERGENCES = "budget_properties.divergences"
ITS_LOG_P = "budget_properties.log_probabilities"
RULERS_LOG_P = "minislice.beyond.rulers.log_probabilities"
RULERS_BIAS = "minislice.beyond.rulers.has_bias"
RULERS_W_OUT = "minislice.beyond.rulers.solve_output"
PER_NEURON = "minislice.beyond.allocation._per_neuron"
SIZED = "minislice.beyond.allocation.sliced_config"
ELSEWHERE = "minislice.beyond.allocation.Sizes.elsewhere"
PARTS = "minislice.beyond.allocation._parts"
FITTED = "minislice.beyond.allocation._fitted"
PLANNED = "minislice.beyond.budget.cheapest"
TOKENS = "minislice.corpus.batches._checked"
EVALUATED = "minislice.perplexity.token_batches"
# ... and where the properties themselves use it.
ITS_FUSE = "properties.fuse"
ITS_SUBTRACT_MEAN = "properties.subtract_mean"
ITS_RANDOM_ORTHOGONAL = "properties.random_orthogonal"
ITS_COMPONENTS = "properties.principal_components"
ITS_COVARIANCE = "properties.covariance"
ITS_PERPLEXITY = "properties.perplexity"
ITS_ALIGN = "adapter_properties.align"
ITS_LEAST_HARMFUL = "inner_properties.least_harmful"
ITS_REFIT = "inner_properties.refit"
ITS_MOMENTS = "inner_properties.moments"
ITS_CHEAPEST = "budget_properties.cheapest"
ITS_COSTS = "budget_properties.block_costs"
ITS_LOSSES = "depth_properties.losses_without_each"

OPT, LLAMA, PHI = (Recipe(family, heads=4, head_dim=4, hidden=20, seed=7) for family in ("opt", "llama", "phi"))


@dataclass(frozen=True)
class Mistake:
    target: str  # one of those above
    version: Callable  # one of `mistakes`
    fact: Callable  # which must fail
    recipe: Recipe
    options: dict = field(default_factory=dict)
    claim: str = ""  # of the assertion that must fail, in a property that has several

    @property
    def name(self) -> str:
        version = self.version.__name__.replace("_", " ")
        return f"{self.target.removeprefix('minislice.')} {version} breaks {self.fact.__name__}"


def facts(module) -> dict[str, Callable]:
    """The properties a module defines: what takes a recipe and returns nothing."""
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and next(iter(inspect.signature(function).parameters)) == "recipe"
        and inspect.signature(function).return_annotation is None
    }


p, a, n = properties, adapter_properties, inner_properties
b, d = budget_properties, depth_properties
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

MISTAKES = [
    Mistake(TIED_HEAD, wrong.scale_left_out_of_the_head, p.tied_head_is_exact, LLAMA, claim="assert_same_logits"),
    Mistake(TIED_HEAD, wrong.shift_left_out_of_the_head, p.tied_head_is_exact, tied, claim="assert_same_logits"),
    Mistake(TIED_EMBEDDING, wrong.mean_left_in_the_embedding, p.tied_head_is_exact, PHI, claim="assert_same_logits"),
    Mistake(
        TIE_OBSTACLE, wrong.never_a_tie, p.default_head_is_tied_where_it_can_be, tied, claim="get_output_embeddings"
    ),
    Mistake(EMBEDDING, wrong.nothing_done, p.slicing_is_projection, OPT),
    Mistake(MAKE_ADAPTER, wrong.ends_aligned, p.slicing_is_projection, LLAMA, {"head": "tied"}),
    Mistake(ITS_SUBTRACT_MEAN, wrong.mean_of_each_column, p.layernorm_is_rmsnorm_of_a_signal_without_mean, OPT),
    Mistake(RMSNORM, wrong.eps_outside_the_root, p.layernorm_is_rmsnorm_of_a_signal_without_mean, thin_eps),
    Mistake(RMSNORM, wrong.mean_subtracted_again, p.rmsnorm_commutes_with_rotations, OPT, claim="norm(X @ Q) @ Q.T"),
    Mistake(RMSNORM, wrong.norm_over_the_tokens, p.rmsnorm_commutes_with_rotations, LLAMA, claim="norm(X @ Q) @ Q.T"),
    Mistake(RMSNORM, wrong.root_of_the_width_lost, p.rmsnorm_commutes_with_rotations, PHI, claim="X / X.norm("),
    Mistake(BARE, wrong.eps_forgotten, p.fusion_preserves_logits, thin_eps),
    Mistake(RMSNORM, wrong.eps_outside_the_root, p.fusion_preserves_logits, thin_eps),
    Mistake(ITS_FUSE, wrong.mean_subtracted_from_every_embedding, p.fusion_preserves_logits, LLAMA),
    Mistake(FUSED_NETWORK, wrong.positions_overlooked, p.fusion_preserves_logits, OPT),
    Mistake(MEAN_OF_OUTPUT, wrong.nothing_done, p.fusion_preserves_logits, OPT),
    Mistake(MEAN_OF_OUTPUT, wrong.output_bias_keeps_its_mean, p.fusion_preserves_logits, PHI),
    Mistake(MEAN_OF_OUTPUT, wrong.mean_of_the_wrong_axis, p.fusion_preserves_logits, OPT),
    Mistake(FUSE_INTO, wrong.shift_not_folded_into_the_head, p.fusion_preserves_logits, OPT),
    Mistake(FUSE_INTO, wrong.shift_folded_through_scaled_weights, p.fusion_preserves_logits, PHI),
    Mistake(FUSE_INTO, wrong.scale_forgotten, p.fusion_preserves_logits, LLAMA),
    Mistake(FUSE_INTO, wrong.scale_on_the_output_side, p.fusion_preserves_logits, OPT),
    Mistake(FUSE_INTO, wrong.done_twice, p.fusion_preserves_logits, LLAMA),
    Mistake(ITS_FUSE, wrong.head_still_tied, p.fusion_preserves_logits, tied),
    Mistake(ROTATE_READER, wrong.transposed, p.one_rotation_preserves_logits, LLAMA),
    Mistake(ROTATE_WRITER, wrong.output_bias_not_rotated, p.one_rotation_preserves_logits, OPT),
    Mistake(ROTATED_NETWORK, wrong.positions_overlooked, p.one_rotation_preserves_logits, OPT),
    Mistake(W_OUT, wrong.second_output_overlooked, p.one_rotation_preserves_logits, PHI),
    Mistake(ROTATE_READER, wrong.head_rotated_twice, p.one_rotation_preserves_logits, tied),
    Mistake(ROTATE_READER, wrong.head_not_rotated, p.one_rotation_preserves_logits, PHI),
    Mistake(ROTATION_ADAPTER, wrong.adapter_missing, p.rotation_per_block_preserves_logits, LLAMA),
    Mistake(ROTATION_ADAPTER, wrong.adapter_transposed, p.rotation_per_block_preserves_logits, PHI),
    Mistake(
        ITS_RANDOM_ORTHOGONAL, wrong.gaussian_matrix, p.random_orthogonal_is_orthogonal_and_seeded, OPT, claim="Q.T @ Q"
    ),
    Mistake(
        ITS_RANDOM_ORTHOGONAL,
        wrong.from_the_global_generator,
        p.random_orthogonal_is_orthogonal_and_seeded,
        OPT,
        claim="torch.equal(Q, again)",
    ),
    Mistake(ITS_RANDOM_ORTHOGONAL, wrong.qr_without_the_sign_fix, p.random_orthogonal_is_haar, OPT, claim="Q.mean(0)"),
    Mistake(ITS_RANDOM_ORTHOGONAL, wrong.qr_of_a_uniform_matrix, p.random_orthogonal_is_haar, OPT, claim="Q.mean(0)"),
    Mistake(ROTATION, wrong.gaussian_matrix, p.one_rotation_preserves_logits, OPT),
    Mistake(ITS_COMPONENTS, wrong.ascending, p.principal_components_diagonalise, OPT, claim="eigenvalues.diff()"),
    Mistake(
        ITS_COMPONENTS,
        wrong.only_eigenvalues_turned_round,
        p.principal_components_diagonalise,
        OPT,
        claim="eigenvalues.diag() @ Q.T",
    ),
    Mistake(COMPONENTS, wrong.ascending, p.slicing_is_projection, LLAMA),
    Mistake(COMPONENTS, wrong.ascending, p.variance_adds_up, OPT, claim="eigenvalues.diff()"),
    Mistake(COMPONENTS, wrong.only_eigenvalues_turned_round, p.variance_adds_up, PHI, claim="kept + discarded"),
    Mistake(COMPONENTS, wrong.columns_of_largest_norm, p.earlier_rotation_does_not_matter, LLAMA),
    Mistake(RMSNORM, wrong.divided_by_the_sliced_width, p.slicing_is_projection, PHI),
    Mistake(SLICE_READER, wrong.head_not_rotated, p.full_width_preserves_logits, OPT, claim="assert_same_logits"),
    Mistake(
        SLICE_WRITER, wrong.output_bias_not_rotated, p.full_width_preserves_logits, PHI, claim="assert_same_logits"
    ),
    Mistake(
        ITS_COVARIANCE,
        wrong.last_tokens_left_out,
        p.covariance_is_summed_in_float64,
        OPT,
        claim="covariance(rows) - first",
    ),
    Mistake(
        ITS_COVARIANCE, wrong.only_one_triangle, p.covariance_is_summed_in_float64, OPT, claim="relative_error(first"
    ),
    Mistake(
        ITS_COVARIANCE,
        wrong.products_in_float32,
        p.covariance_is_summed_in_float64,
        OPT,
        claim="covariance(rows) - first",
    ),
    Mistake(ITS_COVARIANCE, wrong.mask_ignored, p.covariance_is_summed_in_float64, left, claim="rows[mask]"),
    Mistake(COVARIANCE, wrong.centred, p.slicing_is_projection, LLAMA),
    Mistake(SIGNAL_COVARIANCE, wrong.of_the_norms_input, p.slicing_is_projection, OPT),
    Mistake(ORIENTATION, wrong.gaussian_matrix, p.orientation_does_not_matter, PHI),
    Mistake(COVARIANCE, wrong.mask_ignored, p.padding_is_not_counted, left, claim="assert_same_logits"),
    Mistake(EMBED, wrong.padding_attended_to, p.padding_is_not_counted, left, claim="assert_same_logits"),
    Mistake(
        TOKENS, wrong.padding_filled_in_place, p.padding_is_not_counted, right, claim="torch.equal(ids, before[0])"
    ),
    Mistake(COVARIANCE, wrong.averaged_over_the_batch, p.batches_do_not_matter, LLAMA, claim="assert_same_logits"),
    Mistake(ITS_PERPLEXITY, wrong.batches_weighted_alike, p.batches_do_not_matter, OPT, claim="isclose(one, other"),
    Mistake(
        WIDTH_KEEPING, wrong.one_less, p.discard_keeps_the_least_that_suffices, LLAMA, claim="discarded <= discard"
    ),
    Mistake(ITS_PERPLEXITY, wrong.not_shifted, p.perplexity_is_exp_of_transformers_loss, OPT),
    Mistake(EVALUATED, wrong.padding_predicted, p.perplexity_is_exp_of_transformers_loss, right),
    Mistake(BRANCH, wrong.cache_not_handed_on, p.cached_generation_equals_uncached, PHI, claim="cached."),
    Mistake(FULL_ADAPTER, wrong.adapter_transposed, p.slicing_is_projection, OPT, {"slice_head": True}),
    Mistake(ITS_ALIGN, wrong.wrong_polar_factor, a.alignment_makes_the_adapter_symmetric, LLAMA, claim="S[:, :k].T"),
    Mistake(
        ITS_ALIGN,
        wrong.directions_in_reverse,
        a.alignment_makes_the_adapter_symmetric,
        LLAMA,
        claim="U @ deficits.diag()",
    ),
    Mistake(ALIGN, wrong.wrong_polar_factor, a.exact_low_rank_equals_full, LLAMA),
    Mistake(ALIGN, wrong.wrong_polar_factor, p.approximate_adapters_carry_close_directions_whole, PHI, none),
    Mistake(ALIGN, wrong.directions_in_reverse, a.exact_low_rank_equals_full, OPT),
    Mistake(
        ALIGN,
        wrong.directions_in_reverse,
        p.approximate_adapters_carry_close_directions_whole,
        LLAMA,
        {**low_rank, "tolerance": 0.3},
    ),
    Mistake(LOW_RANK_ADAPTER, wrong.deficit_without_its_root, a.exact_low_rank_equals_full, PHI),
    Mistake(MAKE_ADAPTER, wrong.next_basis_left_as_it_was, a.exact_low_rank_equals_full, LLAMA),
    Mistake(
        MAKE_ADAPTER,
        wrong.no_direction_dropped,
        a.rank_is_at_most_what_was_deleted,
        LLAMA,
        claim="min(recipe.width - k, k)",
    ),
    Mistake(
        MAKE_ADAPTER,
        wrong.left_out_without_aligning,
        a.none_equals_every_direction_dropped,
        OPT,
        {"slice_head": True},
        claim="assert_same_logits",
    ),
    Mistake(MAKE_ADAPTER, wrong.always_full, a.parameter_counts_follow_the_formulas, LLAMA, low_rank, claim="k * rank"),
    Mistake(
        COMPONENTS, wrong.eigenvectors_not_normalised, a.adapter_has_unit_singular_values, LLAMA, claim="cosines.max()"
    ),
    Mistake(ITS_LEAST_HARMFUL, wrong.only_by_norm, n.cheapest_neuron_goes_first, other),
    Mistake(ITS_LEAST_HARMFUL, wrong.only_by_norm, n.nearly_the_best_of_all_subsets_is_kept, other),
    Mistake(ITS_LEAST_HARMFUL, wrong.plainly_deleted, n.solved_output_is_least_squares, OPT, claim="solved, best"),
    Mistake(ITS_REFIT, wrong.ridge_forgotten, n.refit_is_least_squares, OPT),
    Mistake(ITS_REFIT, wrong.other_sign, n.refit_is_least_squares, LLAMA),
    Mistake(ITS_MOMENTS, wrong.tokens_unweighted, n.moments_are_weighted_sums, OPT),
    Mistake(ITS_MOMENTS, wrong.padding_counted, n.moments_are_weighted_sums, OPT),
    Mistake(OUTPUT_MATRIX, wrong.branchs_number_overlooked, n.fusing_first_changes_nothing, scaled, {"repair": True}),
    Mistake(KEEP_NEURONS, wrong.first_neurons_kept, n.idle_neurons_can_go, LLAMA, claim="assert_same_logits"),
    Mistake(KEEP_NEURONS, wrong.gate_left_whole_rows, n.idle_neurons_can_go, PHI, claim="assert_same_logits"),
    Mistake(KEEP_NEURONS, wrong.up_keeps_its_first_neurons, n.idle_neurons_can_go, gated, claim="assert_same_logits"),
    Mistake(KEEP_INNER, wrong.nothing_done, n.idle_neurons_can_go, OPT, {"slicing": 0}, claim="2 * block.neurons"),
    Mistake(KEEP_EXPERTS, wrong.all_keep_what_the_first_keeps, n.idle_neurons_can_go, experts, claim="logits"),
    Mistake(
        KEEP_EXPERTS, wrong.gates_and_ups_taken_for_neighbours, n.idle_neurons_can_go, experts, claim="assert_same"
    ),
    Mistake(ITS_EXPERT_MOMENTS, wrong.router_ignored, n.experts_moments_are_weighted_sums, experts),
    Mistake(ITS_EXPERT_MOMENTS, wrong.experts_pad, n.experts_moments_are_weighted_sums, experts),
    Mistake(
        ITS_SOLVE_OUTPUT, wrong.experts_rows_left_alone, n.experts_keep_what_is_best_for_each, experts, claim="best"
    ),
    Mistake(DROP, wrong.next_one_dropped, n.dropped_block_adds_nothing, other, claim="dropped == [number]"),
    Mistake(SLICE_DROP, wrong.branch_kept, n.dropped_block_adds_nothing, LLAMA, claim="assert_same_logits"),
    Mistake(SLICE_MOMENTS, wrong.dense_signal_one_block_late, n.nothing_lost_is_nothing_repaired, OPT),
    Mistake(REFIT, wrong.other_sign, n.repair_brings_the_signal_nearer, PHI),
    Mistake(MOMENTS, wrong.last_input_shuffled, n.repair_brings_the_signal_nearer, LLAMA),
    Mistake(EXCESS, wrong.nothing_done, p.approximate_adapters_carry_close_directions_whole, OPT, none),
    Mistake(COST_OF, wrong.probe_ignored, b.cost_of_neurons_is_a_power_of_the_energy_lost, OPT, claim="cost.probed"),
    Mistake(
        COST_OF,
        wrong.lines_between_what_was_measured,
        b.cost_of_neurons_is_a_power_of_the_energy_lost,
        OPT,
        claim="max(powers)",
    ),
    Mistake(
        COST_OF_WIDTH, wrong.in_proportion, b.cost_of_a_width_is_a_power_of_the_share_deleted, OPT, claim="cost(48)"
    ),
    Mistake(
        RULERS_LOGITS,
        wrong.next_block_left_out_too,
        b.measured_costs_are_those_of_whole_models,
        LLAMA,
        claim="cost.dropped",
    ),
    Mistake(ITS_DIVERGENCES, wrong.the_other_way_round, b.divergence_is_what_is_lost_of_the_log_likelihood, OPT),
    Mistake(ITS_DIVERGENCES, wrong.only_the_likeliest, b.divergence_is_what_is_lost_of_the_log_likelihood, LLAMA),
    Mistake(ITS_LOG_P, wrong.padding_predicted_as_well, b.divergence_is_what_is_lost_of_the_log_likelihood, left),
    Mistake(
        RULERS_LOG_P,
        wrong.padding_predicted_as_well,
        b.measured_costs_are_those_of_whole_models,
        left,
        claim="cost.dropped",
    ),
    Mistake(
        ITS_COSTS, wrong.dropping_costs_nothing, b.measured_costs_are_those_of_whole_models, OPT, claim="cost.dropped"
    ),
    Mistake(
        RULERS_W_OUT, wrong.w_out_not_solved_for, b.measured_costs_are_those_of_whole_models, PHI, claim="found, fewer"
    ),
    Mistake(RULERS_BIAS, wrong.bias_overlooked, b.measured_costs_are_those_of_whole_models, OPT, claim="found, fewer"),
    Mistake(SIZED, wrong.width_ignored, b.sizes_are_those_of_the_sliced_model, PHI, claim="sizes.total == "),
    Mistake(
        PER_NEURON, wrong.biases_of_neurons_forgotten, b.sizes_are_those_of_the_sliced_model, OPT, claim="next(gone)"
    ),
    Mistake(
        ITS_CHEAPEST, wrong.blocks_taken_for_alike, b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="< size <="
    ),
    Mistake(
        ITS_CHEAPEST, wrong.slack_on_the_other_side, b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="< size <="
    ),
    Mistake(ELSEWHERE, wrong.elsewhere_forgotten, b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="< size <="),
    Mistake(FITTED, wrong.not_made_up_for, b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="< size <="),
    Mistake(
        ITS_CHEAPEST, wrong.cost_of_dropping_ignored, b.chosen_mixture_is_nearly_the_cheapest, OPT, claim="choice.cost"
    ),
    Mistake(
        PARTS,
        wrong.no_block_may_go,
        b.chosen_mixture_is_nearly_the_cheapest,
        replace(OPT, seed=4),
        claim="sum(excesses)",
    ),
    Mistake(PLANNED, wrong.this_block_may_go_too(0), b.plan_says_what_is_left, three, claim="0 not in"),
    Mistake(PLANNED, wrong.this_block_may_go_too(-1), b.plan_says_what_is_left, three, claim="== plan.parameters"),
    Mistake(PER_NEURON, wrong.biases_of_neurons_forgotten, b.plan_says_what_is_left, three, claim="== plan.parameters"),
    Mistake(PLANNED, wrong.slack_on_the_other_side, b.plan_says_what_is_left, three, claim="<= 0.65 * dense"),
    Mistake(HOW_MANY, wrong.one_more, d.deleting_no_layer_changes_nothing, OPT, claim="== recipe.layers"),
    Mistake(
        ITS_LOSSES,
        wrong.the_layer_behind_left_out,
        d.a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing,
        deep,
        claim="torch.tensor(expected)",
    ),
    Mistake(
        DEPTH_LOSSES,
        wrong.padding_predicted_as_well,
        d.a_loss_without_a_layer_is_that_of_the_network_in_which_it_writes_nothing,
        left,
        claim="torch.tensor(expected)",
    ),
    Mistake(LOSSES, wrong.the_largest_loss_first, d.each_deleted_layer_hurts_least, deep, claim="min(losses)"),
    Mistake(LOSSES, wrong.measured_once, d.each_deleted_layer_hurts_least, deep, claim="min(losses)"),
    Mistake(
        DELETE_LAYER, wrong.another_layer_deleted, d.each_deleted_layer_hurts_least, OPT, claim="assert_same_logits"
    ),
    Mistake(
        SHORTEN,
        wrong.only_the_layers_types_cut,
        d.a_shorter_model_is_saved_by_its_own_class,
        by_layer,
        claim="logits(again",
    ),
    Mistake(
        DELETE_LAYER,
        wrong.layers_keep_their_numbers,
        d.a_shorter_model_generates_the_same_with_a_cache,
        deep,
        claim="range(recipe.layers - 1)",
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_property_fails_on(mistake, monkeypatch):
    mistake.fact(mistake.recipe, **mistake.options)
    place, _, name = mistake.target.rpartition(".")
    monkeypatch.setattr(resolve_name(place), name, mistake.version(resolve_name(mistake.target)))
    with pytest.raises(AssertionError) as failure:
        mistake.fact(mistake.recipe, **mistake.options)
    assert mistake.claim in failed_claim(failure.traceback, mistake.fact)


def failed_claim(traceback, fact: Callable) -> str:
    """The line of the property itself that failed."""
    (line,) = (str(entry.statement).strip() for entry in traceback if entry.name == fact.__name__)
    return line


def test_a_property_with_several_claims_has_the_one_named_that_a_mistake_breaks():
    for mistake in MISTAKES:
        claims = [line for line in inspect.getsource(mistake.fact).splitlines() if line.strip().startswith("assert")]
        assert len(claims) == 1 or any(mistake.claim in line for line in claims if mistake.claim), mistake.name


def test_every_property_has_a_mistake_on_which_it_fails():
    tested = {mistake.fact for mistake in MISTAKES}
    modules = (properties, adapter_properties, inner_properties, budget_properties, depth_properties)
    every = [fact for module in modules for fact in facts(module).items()]
    assert [name for name, fact in every if fact not in tested] == []
