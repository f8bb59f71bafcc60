"""The paper on one page computes what the package computes."""

from pathlib import Path

import pytest
import torch

import minislice
from minislice import whole_paper
from minislice.corpus.embedded import data_folder

IDS = torch.randint(3, 4096, (4, 64), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """The logits of the embedded LLaMA, sliced to 144 columns by the package."""
    model, _ = minislice.load("mini-llama", dtype="float64")
    minislice.slice_model(model, IDS, **vars(minislice.SlicingOptions.paper(width=144)))
    with torch.no_grad():
        return model(IDS).logits


def error_of_the_page(expected: torch.Tensor) -> float:
    page = whole_paper.Llama(data_folder() / "mini-llama", torch.float64)
    with torch.no_grad():
        whole_paper.slice_llama(page, IDS, 144)
        return ((page.logits(IDS) - expected).abs().max() / expected.abs().max()).item()


def test_the_page_computes_what_the_package_computes_and_a_wrong_page_is_found(expected, monkeypatch):
    assert error_of_the_page(expected) < 1e-6  # transformers' norm and RoPE compute in float32
    right = whole_paper.principal_components
    monkeypatch.setattr(whole_paper, "principal_components", lambda X: right(X - X.mean((0, 1))))
    assert error_of_the_page(expected) > 1e-4


@pytest.mark.slow
def test_run_as_a_script_it_prints_what_slicing_costs(capsys):
    with torch.no_grad():
        whole_paper.main()
    dense, sliced = capsys.readouterr().out.splitlines()
    assert dense.startswith("dense: perplexity") and sliced.startswith("sliced by 25%: perplexity")


def test_it_uses_nothing_of_the_package_and_fits_on_a_page():
    source = Path(whole_paper.__file__).read_text().splitlines()
    assert "minislice" not in "".join(line for line in source if "import" in line) and len(source) <= 130
