"""Badges come from one place: no line and no dead link while the repository has no address, one in each if it has."""

import json
import sys

from test_notebooks import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))
import badges


def notebook(path):
    return json.loads(path.read_text("utf-8"))


def test_committed_notebooks_are_what_the_script_writes():
    for path in badges.notebooks():
        place = path.relative_to(ROOT).as_posix()
        assert badges.with_badges(notebook(path), place, badges.repository()) == notebook(path), (
            f"run {badges.__file__}"
        )
        assert badges.repository() or "colab.research" not in path.read_text("utf-8")
    assert len(badges.notebooks()) == len(list((ROOT / "notebooks").glob("*.ipynb"))) + 3


def test_the_address_is_the_one_of_pyproject(tmp_path):
    file = tmp_path / "pyproject.toml"
    for urls, found in {
        'Paper = "https://arxiv.org/abs/2401.15024"': None,
        'Repository = "https://github.com/someone/minislice.git"': "someone/minislice",
        'Repository = "https://gitlab.com/someone/minislice"': None,  # neither link would work
    }.items():
        file.write_text(f'[project.urls]\n{urls}\n\n[tool.x]\nRepository = "https://github.com/some/other"\n')
        assert badges.repository(file) == found


def test_with_an_address_every_notebook_gets_one_line_that_goes_again():
    for path in badges.notebooks():
        place, before = path.relative_to(ROOT).as_posix(), badges.with_badges(notebook(path), "", None)
        after = badges.with_badges(before, place, "someone/minislice")
        title, empty, line = "".join(after["cells"][0]["source"]).split("\n")[:3]
        assert title.startswith("# ") and not empty and line.count("](https://") == 4
        assert f"someone/minislice/blob/main/{place})" in line and place.replace("/", "%2F") in line
        assert badges.with_badges(after, place, "someone/minislice") == after
        assert badges.with_badges(after, place, None) == before
