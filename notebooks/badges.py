"""Write the line "Open in Colab / Binder" under the title of every notebook: `python notebooks/badges.py`.

The address is the repository's, `Repository` in `[project.urls]` of pyproject.toml, on GitHub. While there is none, no
notebook gets a line, and lines written before are taken out. Assignments get none: their folder holds the answers.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MARK = "<!-- badges -->"
BRANCH = "main"


def repository(pyproject: Path = ROOT / "pyproject.toml") -> str | None:
    """The repository's owner and name on GitHub, or None."""
    urls = pyproject.read_text("utf-8").partition("[project.urls]")[2].partition("\n[")[0]
    found = re.search(r'^Repository = "https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?"', urls, flags=re.MULTILINE)
    return found and found[1]


def line(place: str, owner_and_name: str | None) -> str:
    """The badges of the notebook at this path in the repository; nothing without a repository."""
    if owner_and_name is None:
        return ""
    colab = f"https://colab.research.google.com/github/{owner_and_name}/blob/{BRANCH}/{place}"
    binder = f"https://mybinder.org/v2/gh/{owner_and_name}/{BRANCH}?labpath={place.replace('/', '%2F')}"
    badges = (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )
    return f"{badges} There, first run `%pip install git+https://github.com/{owner_and_name}`. {MARK}"


def with_badges(notebook: dict, place: str, owner_and_name: str | None) -> dict:
    """The notebook with the line under its title, in place of an earlier one."""
    title, *others = notebook["cells"]
    heading, *rest = re.sub(rf"\n.*{MARK}\n", "", "".join(title["source"])).split("\n")
    badges = line(place, owner_and_name)
    text = "\n".join([heading, *(["", badges] if badges else []), *rest])
    return {**notebook, "cells": [{**title, "source": text.splitlines(keepends=True)}, *others]}


def notebooks() -> list[Path]:
    """The lecture, and the paper's tables."""
    return sorted(path for folder in (".", "reproduce") for path in (ROOT / "notebooks" / folder).glob("*.ipynb"))


def main() -> None:
    for path in notebooks():
        notebook = json.loads(path.read_text("utf-8"))
        new = with_badges(notebook, path.relative_to(ROOT).as_posix(), repository())
        path.write_text(json.dumps(new, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
