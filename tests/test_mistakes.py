"""Every property can fail: each is run against a planted mistake, where it must, and without it, where it must not."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name

import adapter_properties
import mistakes as wrong
import properties
import pytest
from models import Recipe

OPT, LLAMA, PHI = (Recipe(family, heads=4, head_dim=4, hidden=20, seed=7) for family in ("opt", "llama", "phi"))


@dataclass(frozen=True)
class Mistake:
    target: str  # patched where the function is used, since modules import by name
    version: Callable  # one of `mistakes`
    fact: Callable  # which must fail
    recipe: Recipe
    options: dict = field(default_factory=dict)

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


p, a = properties, adapter_properties
thin_eps, tied = replace(OPT, eps=1e-3), replace(OPT, tied=True)
left, right = replace(OPT, padding="left"), replace(OPT, padding="right")
low_rank, none = {"adapter": "low-rank"}, {"adapter": "none"}

MISTAKES = [
    Mistake("minislice.fusion.bare", wrong.eps_forgotten, p.fusion_preserves_logits, thin_eps),
    Mistake(
        "minislice.architecture.blocks.RMSNorm.forward", wrong.eps_outside_the_root, p.fusion_preserves_logits, thin_eps
    ),
    Mistake("properties.fuse", wrong.mean_subtracted_from_every_embedding, p.fusion_preserves_logits, LLAMA),
    Mistake("minislice.fusion.network", wrong.positions_overlooked, p.fusion_preserves_logits, OPT),
    Mistake("minislice.fusion.subtract_mean_from_output", wrong.nothing_done, p.fusion_preserves_logits, OPT),
    Mistake(
        "minislice.fusion.subtract_mean_from_output", wrong.output_bias_keeps_its_mean, p.fusion_preserves_logits, PHI
    ),
    Mistake("minislice.fusion.subtract_mean_from_output", wrong.mean_of_the_wrong_axis, p.fusion_preserves_logits, OPT),
    Mistake("minislice.fusion.fuse_into", wrong.shift_not_folded_into_the_head, p.fusion_preserves_logits, OPT),
    Mistake("minislice.fusion.fuse_into", wrong.shift_folded_through_scaled_weights, p.fusion_preserves_logits, PHI),
    Mistake("minislice.fusion.fuse_into", wrong.scale_forgotten, p.fusion_preserves_logits, LLAMA),
    Mistake("minislice.fusion.fuse_into", wrong.scale_on_the_output_side, p.fusion_preserves_logits, OPT),
    Mistake("minislice.fusion.fuse_into", wrong.done_twice, p.fusion_preserves_logits, LLAMA),
    Mistake("properties.fuse", wrong.head_still_tied, p.fusion_preserves_logits, tied),
    Mistake("minislice.rotation.rotate_input", wrong.transposed, p.one_rotation_preserves_logits, LLAMA),
    Mistake("minislice.rotation.rotate_output", wrong.output_bias_not_rotated, p.one_rotation_preserves_logits, OPT),
    Mistake("minislice.rotation.network", wrong.positions_overlooked, p.one_rotation_preserves_logits, OPT),
    Mistake(
        "minislice.architecture.blocks.Block.w_out",
        wrong.second_output_overlooked,
        p.one_rotation_preserves_logits,
        PHI,
    ),
    Mistake("minislice.rotation.rotate_input", wrong.head_rotated_twice, p.one_rotation_preserves_logits, tied),
    Mistake("minislice.rotation.rotate_input", wrong.head_not_rotated, p.one_rotation_preserves_logits, PHI),
    Mistake("minislice.rotation.linear_map", wrong.adapter_missing, p.rotation_per_block_preserves_logits, LLAMA),
    Mistake("minislice.rotation.linear_map", wrong.adapter_transposed, p.rotation_per_block_preserves_logits, PHI),
    Mistake("properties.random_orthogonal", wrong.gaussian_matrix, p.random_orthogonal_is_orthogonal_and_seeded, OPT),
    Mistake(
        "properties.random_orthogonal",
        wrong.from_the_global_generator,
        p.random_orthogonal_is_orthogonal_and_seeded,
        OPT,
    ),
    Mistake("properties.random_orthogonal", wrong.qr_without_the_sign_fix, p.random_orthogonal_is_haar, OPT),
    Mistake("properties.random_orthogonal", wrong.qr_of_a_uniform_matrix, p.random_orthogonal_is_haar, OPT),
    Mistake("minislice.rotation.random_orthogonal", wrong.gaussian_matrix, p.one_rotation_preserves_logits, OPT),
    Mistake("properties.principal_components", wrong.ascending, p.principal_components_diagonalise, OPT),
    Mistake(
        "properties.principal_components",
        wrong.only_eigenvalues_turned_round,
        p.principal_components_diagonalise,
        OPT,
    ),
    Mistake("minislice.slicing.principal_components", wrong.ascending, p.slicing_is_projection, LLAMA),
    Mistake("minislice.slicing.principal_components", wrong.ascending, p.variance_adds_up, OPT),
    Mistake("minislice.slicing.principal_components", wrong.only_eigenvalues_turned_round, p.variance_adds_up, PHI),
    Mistake(
        "minislice.slicing.principal_components",
        wrong.columns_of_largest_norm,
        p.earlier_rotation_does_not_matter,
        LLAMA,
    ),
    Mistake(
        "minislice.architecture.blocks.RMSNorm.forward", wrong.divided_by_the_sliced_width, p.slicing_is_projection, PHI
    ),
    Mistake("minislice.slicing.rotate_input", wrong.head_not_rotated, p.full_width_preserves_logits, OPT),
    Mistake("minislice.slicing.rotate_output", wrong.output_bias_not_rotated, p.full_width_preserves_logits, PHI),
    Mistake("properties.covariance", wrong.last_tokens_left_out, p.covariance_is_summed_in_float64, OPT),
    Mistake("properties.covariance", wrong.only_one_triangle, p.covariance_is_summed_in_float64, OPT),
    Mistake("properties.covariance", wrong.products_in_float32, p.covariance_is_summed_in_float64, OPT),
    Mistake("properties.covariance", wrong.mask_ignored, p.covariance_is_summed_in_float64, left),
    Mistake("minislice.slicing.covariance", wrong.centred, p.slicing_is_projection, LLAMA),
    Mistake("minislice.slicing._signal_covariance", wrong.of_the_norms_input, p.slicing_is_projection, OPT),
    Mistake("minislice.slicing.random_orthogonal", wrong.gaussian_matrix, p.orientation_does_not_matter, PHI),
    Mistake("minislice.slicing.covariance", wrong.mask_ignored, p.padding_is_not_counted, left),
    Mistake("minislice.architecture.network.Network.embed", wrong.padding_attended_to, p.padding_is_not_counted, left),
    Mistake("minislice.corpus.batches._checked", wrong.padding_filled_in_place, p.padding_is_not_counted, right),
    Mistake("minislice.slicing.covariance", wrong.averaged_over_the_batch, p.batches_do_not_matter, LLAMA),
    Mistake("properties.perplexity", wrong.batches_weighted_alike, p.batches_do_not_matter, OPT),
    Mistake("minislice.slicing.width_keeping", wrong.one_less, p.discard_keeps_the_least_that_suffices, LLAMA),
    Mistake("properties.perplexity", wrong.not_shifted, p.perplexity_is_exp_of_transformers_loss, OPT),
    Mistake(
        "minislice.measuring.perplexity.token_batches",
        wrong.padding_predicted,
        p.perplexity_is_exp_of_transformers_loss,
        right,
    ),
    Mistake(
        "minislice.architecture.blocks.Block.branch",
        wrong.cache_not_handed_on,
        p.cached_generation_equals_uncached,
        PHI,
    ),
    Mistake(
        "minislice.adapters.linear_map", wrong.adapter_transposed, p.slicing_is_projection, OPT, {"slice_head": True}
    ),
    Mistake("adapter_properties.align", wrong.wrong_polar_factor, a.alignment_makes_the_adapter_symmetric, LLAMA),
    Mistake("adapter_properties.align", wrong.directions_in_reverse, a.alignment_makes_the_adapter_symmetric, LLAMA),
    Mistake("minislice.adapters.align", wrong.wrong_polar_factor, a.exact_low_rank_equals_full, LLAMA),
    Mistake("minislice.adapters.align", wrong.wrong_polar_factor, p.slicing_is_projection, PHI, none),
    Mistake("minislice.adapters.align", wrong.directions_in_reverse, a.exact_low_rank_equals_full, OPT),
    Mistake(
        "minislice.adapters.align",
        wrong.directions_in_reverse,
        p.slicing_is_projection,
        LLAMA,
        {**low_rank, "tolerance": 0.3},
    ),
    Mistake("minislice.adapters.LowRankAdapter", wrong.deficit_without_its_root, a.exact_low_rank_equals_full, PHI),
    Mistake("minislice.slicing.make_adapter", wrong.next_basis_left_as_it_was, a.exact_low_rank_equals_full, LLAMA),
    Mistake("minislice.slicing.make_adapter", wrong.no_direction_dropped, a.rank_is_at_most_what_was_deleted, LLAMA),
    Mistake(
        "minislice.slicing.make_adapter",
        wrong.left_out_without_aligning,
        a.none_equals_every_direction_dropped,
        OPT,
        {"slice_head": True},
    ),
    Mistake(
        "minislice.slicing.make_adapter", wrong.always_full, a.parameter_counts_follow_the_formulas, LLAMA, low_rank
    ),
    Mistake(
        "minislice.slicing.principal_components",
        wrong.eigenvectors_not_normalised,
        a.adapter_has_unit_singular_values,
        LLAMA,
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_property_fails_on(mistake, monkeypatch):
    mistake.fact(mistake.recipe, **mistake.options)
    monkeypatch.setattr(mistake.target, mistake.version(resolve_name(mistake.target)))
    with pytest.raises(AssertionError):
        mistake.fact(mistake.recipe, **mistake.options)


def test_every_property_has_a_mistake_on_which_it_fails():
    tested = {mistake.fact for mistake in MISTAKES}
    assert [name for name, fact in (facts(properties) | facts(adapter_properties)).items() if fact not in tested] == []
