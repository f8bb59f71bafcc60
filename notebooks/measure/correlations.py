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
    pairs = [(item["rulers"].get(ruler), item["loss"], item["parameters"]) for item in items]
    pairs = [(value, loss, count if per_parameter else 1) for value, loss, count in pairs if value is not None]
    if len(pairs) < max(len(items), 4):
        return None
    said, true, count = torch.tensor(pairs, dtype=torch.float64).T
    said, true = said / count, true / count
    rho = spearman(said, true).item()
    draws = torch.randint(len(said), (200, len(said)), generator=torch.Generator().manual_seed(0))
    found = spearman(said[draws], true[draws])
    return None if rho != rho else (rho, found[~found.isnan()].std().item())


def correlations(items: list[dict]) -> dict[str, dict[str, tuple[float, float] | None]]:
    """By ruler and column."""
    chosen = {column: [item for item in items if column in (item["kind"], "all")] for column in COLUMNS[:-1]}
    chosen[COLUMNS[-1]] = chosen["all"]
    return {
        ruler: {column: correlation(own, ruler, column == COLUMNS[-1]) for column, own in chosen.items()}
        for ruler in RULERS
    }


def table(rows: list[dict]) -> str:
    """A table for each model, and one of means over the models."""
    tables, known = [], {row["model"]: correlations(row["items"]) for row in rows}
    for row in rows:
        counts = [sum(column in (item["kind"], "all") for item in row["items"]) for column in COLUMNS[:-1]]
        heads = [f"{column} ({count})" for column, count in zip(COLUMNS, [*counts, counts[-1]], strict=True)]
        cells = {
            ruler: ["-" if pair is None else f"{pair[0]:.2f} ± {pair[1]:.2f}" for pair in found.values()]
            for ruler, found in known[row["model"]].items()
        }
        tables.append(markdown([row["model"], *heads], [[ruler, *line] for ruler, line in cells.items()]))
        ratios = [
            item["rulers"]["interpolated"] / item["rulers"]["divergence"]
            for item in row["items"]
            if "interpolated" in item["rulers"]
        ]
        if len(ratios) > 1:
            low, middle, high = statistics.quantiles(ratios, n=4)
            spread = f"median {middle:.2f}, middle half {low:.2f} to {high:.2f}"
            tables.append(f"interpolated / measured divergence at half of the neurons: {spread}")
    lines = []
    for ruler in RULERS:
        of_models = [[known[model][ruler][column] for model in known] for column in COLUMNS]
        means = [[pair[0] for pair in pairs if pair is not None] for pairs in of_models]
        lines.append([ruler, *(f"{sum(m) / len(m):.2f}" if m else "-" for m in means)])
    return "\n\n".join([*tables, markdown([f"mean of {len(rows)} models", *COLUMNS], lines)])
