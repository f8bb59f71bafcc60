"""Gives opt.ipynb and phi-2.ipynb the cells of llama-2.ipynb; each keeps its own first two, title and parameters.

    python notebooks/reproduce/make.py

Outputs are not copied: run the notebooks afterwards (README.md beside says how).
"""

from copy import deepcopy
from pathlib import Path

import nbformat

HERE = Path(__file__).parent
COPIED_FROM, COPIED_TO = "llama-2", ("opt", "phi-2")


def notebook(name: str) -> nbformat.NotebookNode:
    """A notebook with the cells that all share, and without outputs."""
    own, source = (nbformat.read(HERE / f"{each}.ipynb", as_version=4) for each in (name, COPIED_FROM))
    own.cells[2:] = deepcopy(source.cells[2:])
    for cell in own.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return own


if __name__ == "__main__":
    for name in COPIED_TO:
        nbformat.write(notebook(name), HERE / f"{name}.ipynb")
