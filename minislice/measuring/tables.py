"""Rows of cells as a table: aligned columns for people, or Markdown."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], words: int = 1, markdown: bool = False) -> str:
    """The rows, the heads first, as lines: the first `words` columns begin at the left, the others end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if column < words else str.rjust for column in range(len(widths))]
    lines = [[side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)] for row in rows]
    if not markdown:
        return "\n".join("  ".join(cells).rstrip() for cells in lines)
    rule = [side(":" if side is str.rjust else "", width, "-") for side, width in zip(sides, widths, strict=True)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))
