"""The paper on one page computes what the package computes."""

from pathlib import Path

import pytest
import torch

import minislice
from minislice import whole_paper
from minislice.corpus.embedded import data_folder

IDS = torch.randint(3, 4096, (4, 64), generator=torch.Generator().manual_seed(0))
MISTAKES = {
    "the mean subtracted, as covariances do": lambda right: lambda X: right(X - X.mean((0, 1))),
    "the least components": lambda right: lambda X: right(X).flip(1),
}


def error(k: int) -> float:
    """Of the page's logits, of the embedded LLaMA sliced to k columns, from those by `slice_model`."""
    page = whole_paper.Llama(data_folder() / "mini-llama", torch.float64)
    package, _ = minislice.load("mini-llama", dtype="float64")
    with torch.no_grad():
        if k < page.D:
            whole_paper.slice_llama(page, IDS, k)
            minislice.slice_model(package, IDS, **vars(minislice.SlicingOptions.paper(width=k)))
        found, expected = page.logits(IDS), package(IDS).logits
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("k", [192, 144])
def test_the_page_computes_what_the_package_computes(k):
    assert error(k) < 1e-6  # transformers' norm and RoPE compute in float32


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_page_is_found(mistake, monkeypatch):
    monkeypatch.setattr(whole_paper, "principal_components", MISTAKES[mistake](whole_paper.principal_components))
    assert error(144) > 1e-4


@pytest.mark.slow
def test_run_as_a_script_it_prints_what_slicing_costs(capsys):
    with torch.no_grad():
        whole_paper.main()
    dense, sliced = capsys.readouterr().out.splitlines()
    assert dense.startswith("dense: perplexity") and sliced.startswith("sliced by 25%: perplexity")


def test_it_uses_nothing_of_the_package_and_fits_on_a_page():
    source = Path(whole_paper.__file__).read_text().splitlines()
    assert "minislice" not in "".join(line for line in source if "import" in line) and len(source) <= 130
