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
        assert badges.with_badges(notebook(path), place, badges.repository()) == notebook(path), "run badges.py"


def test_the_address_is_the_one_of_pyproject(tmp_path):
    file = tmp_path / "pyproject.toml"
    for url, found in {"github.com/someone/minislice.git": "someone/minislice", "gitlab.com/x/minislice": None}.items():
        file.write_text(f'[project.urls]\nRepository = "https://{url}"\n')
        assert badges.repository(file) == found  # neither link would work elsewhere


def test_with_an_address_every_notebook_gets_one_line_that_goes_again():
    for path in badges.notebooks():
        place, before = path.relative_to(ROOT).as_posix(), badges.with_badges(notebook(path), "", None)
        after = badges.with_badges(before, place, "someone/minislice")
        title, empty, line = "".join(after["cells"][0]["source"]).split("\n")[:3]
        assert title.startswith("# ") and not empty and line.count("](https://") == 4
        assert f"someone/minislice/blob/main/{place})" in line and place.replace("/", "%2F") in line
        assert badges.with_badges(after, place, None) == before
