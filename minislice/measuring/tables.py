"""Cells of text as a table: aligned columns for people, or Markdown."""

from collections.abc import Iterable, Sequence


def table(rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A line for each row: the first `words` columns begin at the left, the others end at the right, as numbers do."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if column < words else str.rjust for column in range(len(widths))]
    lines = ([side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int | None = None) -> str:
    """The same in Markdown; without `words` all columns begin at the left."""
    words = len(heads) if words is None else words
    first, *others = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join([first, "|---" * words + "|---:" * (len(heads) - words) + "|", *others])
