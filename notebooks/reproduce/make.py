"""Writes the notebooks of this folder from `template.md`, with the parameters of each family, so that they can't drift.

    python notebooks/reproduce/make.py

Outputs are not written: run the notebooks afterwards (README.md beside says how).
"""

import re
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from protocol import FAMILIES

HERE = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def notebook(name: str) -> nbformat.NotebookNode:
    """The notebook of a family, without outputs.

    Each block of code in the template is a code cell, the text between two blocks is a text cell; a line "+++" begins
    another cell. Only the first two cells, title and parameters, have gaps to fill.
    """
    code = re.compile(r"^```{code-cell}\n(.*?)\n```$", flags=re.DOTALL | re.MULTILINE)
    title, parameters, *others = code.split((HERE / "template.md").read_text(encoding="utf-8"))
    family, models = FAMILIES[name], list(FAMILIES[name].sources)
    gaps = {
        "name": name,
        "family": family,
        "tables": ", ".join(map(str, family.tables())),
        "models": " and ".join(filter(None, (", ".join(models[:-1]), models[-1]))),
        "example": models[0].split("-")[-1] if len(models) > 1 else models[0],
    }
    cells = []
    for index, text in enumerate([title.format(**gaps), parameters.format(**gaps), *others]):
        kind = (new_markdown_cell, new_code_cell)[index % 2]
        cells += [kind(part.strip()) for part in text.split("\n+++\n") if part.strip()]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index:02d}"
    cells[1].metadata.tags = ["parameters"]
    return new_notebook(cells=cells, metadata=METADATA)


if __name__ == "__main__":
    for name in FAMILIES:
        nbformat.write(notebook(name), HERE / f"{name}.ipynb")
