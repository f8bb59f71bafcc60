"""What notebook 10 rounds with: the levels of a rounded row, Hadamard matrices, and whose inputs are rounded."""

import properties
import pytest
import torch
from models import Recipe

from minislice.architecture.network import network
from minislice.teaching import quantization
from minislice.teaching.quantization import hadamard, peak, rounded


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_rounded_row_has_so_many_levels_and_keeps_its_largest_entry(bits):
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = rounded(x, bits) / x.abs().amax(1, keepdim=True) * (2 ** (bits - 1) - 1)
    assert (steps - steps.round()).abs().max() < 1e-9 and steps.abs().max().round() == 2 ** (bits - 1) - 1
    assert ((rounded(x, bits) - x).abs() <= x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1) / 2 + 1e-12).all()
    assert torch.equal(rounded(torch.zeros(2, 5), bits), torch.zeros(2, 5))
    assert torch.allclose(peak(torch.eye(4)), torch.full((4,), 2.0))


@pytest.mark.parametrize("size", [1, 12, 64, 192])
def test_a_hadamard_matrix_is_orthogonal_and_flat(size):
    H = hadamard(size, torch.Generator().manual_seed(0))
    assert torch.allclose(H @ H.T, torch.eye(size, dtype=H.dtype), atol=1e-12)
    assert torch.allclose(H.abs(), torch.full_like(H, size**-0.5))
    with pytest.raises(ValueError, match="order 480"):
        hadamard(480, torch.Generator())


@pytest.mark.parametrize("family", ["llama", "phi", "opt"])
def test_each_linear_reads_what_the_function_makes_of_its_input(family):
    recipe = Recipe(family, head_dim=4, heads=4)
    model = recipe.model()
    found, before = quantization.linears_by_input(network(model)), properties.logits(model, recipe.tokens())
    assert [*found] == list(quantization.WHERE)
    assert sum(map(len, found.values())) == sum(len(b.readers) + len(b.writers) for b in network(model).blocks)
    assert all(linear.in_features == network(model).blocks[-1].neurons for linear in found[quantization.NEURONS])
    for linears in found.values():
        with quantization.inputs_become(linears, torch.zeros_like):
            assert properties.relative_error(properties.logits(model, recipe.tokens()), before) > 1e-3
    assert torch.equal(properties.logits(model, recipe.tokens()), before)
    quantization.round_weights(network(model), 3)
    for block in network(model).blocks:
        assert all(len(row.unique()) <= 7 for linear in block.linears.values() for row in linear.weight)
