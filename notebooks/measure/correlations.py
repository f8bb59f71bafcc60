"""Rank correlations of rulers with measured losses: what `rulers.py` prints of its results."""

import statistics

import torch
from torch import Tensor

from minislice.measuring.tables import markdown

RULERS = ("energy", "readers", "cosine", "gradient", "Fisher", "measured", "divergence", "interpolated", "size")
COLUMNS = ("block", "neurons 1/3", "neurons 1/2", "boundary", "all", "all, per parameter")


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """The rank correlation along the last dimension, ties sharing a rank; NaN where all are equal."""

    def centred_ranks(x: Tensor) -> Tensor:
        ranks = (x[..., None] > x[..., None, :]).sum(-1) + (x[..., None] == x[..., None, :]).sum(-1) / 2
        return ranks.double() - ranks.double().mean(-1, keepdim=True)

    a, b = centred_ranks(a), centred_ranks(b)
    return (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt()


def correlation(items: list[dict], ruler: str, per_parameter: bool) -> tuple[float, float] | None:
    """With the measured losses, and its standard error by 200 bootstrap samples of the items; None where it says
    nothing.
    """
    if len(items) < 4 or any(ruler not in item["rulers"] for item in items):
        return None
    found = [(item["rulers"][ruler], item["loss"], item["parameters"] if per_parameter else 1) for item in items]
    said, true, count = torch.tensor(found, dtype=torch.float64).T
    said, true = said / count, true / count
    rho = spearman(said, true).item()
    draws = torch.randint(len(said), (200, len(said)), generator=torch.Generator().manual_seed(0))
    drawn = spearman(said[draws], true[draws])
    return None if rho != rho else (rho, drawn[~drawn.isnan()].std().item())


def table(rows: list[dict]) -> str:
    """A table for each model, and one of means over the models."""
    tables, found = [], {}  # found: by ruler and column, the correlations in all models
    for row in rows:
        columns = {column: [item for item in row["items"] if column in (item["kind"], "all")] for column in COLUMNS}
        columns[COLUMNS[-1]] = columns["all"]
        lines = []
        for ruler in RULERS:
            pairs = {c: correlation(items, ruler, c == COLUMNS[-1]) for c, items in columns.items()}
            cells = ["-" if pair is None else f"{pair[0]:.2f} ± {pair[1]:.2f}" for pair in pairs.values()]
            lines.append([ruler, *cells])
            for column, pair in pairs.items():
                found.setdefault((ruler, column), []).extend(pair[:1] if pair else [])
        tables.append(markdown([row["model"], *(f"{c} ({len(items)})" for c, items in columns.items())], lines))
        rulers = [item["rulers"] for item in row["items"] if "interpolated" in item["rulers"]]
        if len(rulers) > 1:
            low, middle, high = statistics.quantiles((r["interpolated"] / r["divergence"] for r in rulers), n=4)
            spread = f"median {middle:.2f}, middle half {low:.2f} to {high:.2f}"
            tables.append(f"interpolated / measured divergence at half of the neurons: {spread}")
    means = {place: f"{statistics.fmean(rhos):.2f}" if rhos else "-" for place, rhos in found.items()}
    lines = [[ruler, *(means[ruler, column] for column in COLUMNS)] for ruler in RULERS]
    return "\n\n".join([*tables, markdown([f"mean of {len(rows)} models", *COLUMNS], lines)])
