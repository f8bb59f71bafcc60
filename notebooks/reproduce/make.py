"""Writes the notebooks of this folder from `template.md`, with the parameters of each family, so that they can't drift.

    python notebooks/reproduce/make.py

Outputs are not written: run the notebooks afterwards (README.md beside says how). `tests/test_reproduce_notebooks.py`
checks that each notebook's sources are the template's.
"""

import json
import re
from pathlib import Path

from protocol import FAMILIES

HERE = Path(__file__).parent
TEMPLATE = HERE / "template.md"


def notebook(name: str) -> dict:
    """The notebook of a family, without outputs.

    Each block of code in the template is a code cell, the text between two blocks is a text cell; a line "+++" begins
    another cell. Only the first two cells, title and parameters, have gaps to fill.
    """
    code = re.compile(r"^```{code-cell}\n(.*?)\n```$", flags=re.DOTALL | re.MULTILINE)
    title, parameters, *others = code.split(TEMPLATE.read_text(encoding="utf-8"))
    family, models = FAMILIES[name], list(FAMILIES[name].sources)
    gaps = {
        "name": name,
        "title": family.title,
        "tables": ", ".join(map(str, family.tables())),
        "models": " and ".join(filter(None, (", ".join(models[:-1]), models[-1]))),
        "stand_in": family.stand_in,
        "licence": family.licence,
        "example": models[0].split("-")[-1] if len(models) > 1 else models[0],
    }
    cells = []
    for index, text in enumerate([title.format(**gaps), parameters.format(**gaps), *others]):
        kind = ("markdown", "code")[index % 2]
        cells += [_cell(kind, part.strip()) for part in text.split("\n+++\n") if part.strip()]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index:02d}"
    cells[1]["metadata"] = {"tags": ["parameters"]}
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(kind: str, source: str) -> dict:
    cell = {"cell_type": kind, "metadata": {}, "source": source.splitlines(True)}
    return cell | ({"execution_count": None, "outputs": []} if kind == "code" else {})


if __name__ == "__main__":
    for name in FAMILIES:
        text = json.dumps(notebook(name), indent=1, ensure_ascii=False) + "\n"
        (HERE / f"{name}.ipynb").write_text(text, encoding="utf-8")
