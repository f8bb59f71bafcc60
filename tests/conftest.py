"""What every test runs under: annotations of shapes checked, hypothesis repeatable, no network, no GPU."""

import gc
import os
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"  # figures without a screen
if not os.environ.get("MINISLICE_TEST_GPU"):  # see test_cuda; everything else is the same wherever it runs
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
# Annotations of shapes are checked in tests; the hook must be in place before anything imports minislice.
ROOT = Path(__file__).parents[1]
FILES = [path for path in ROOT.glob("minislice/**/*.py") if "from jaxtyping" in path.read_text("utf-8")]
CHECKED = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES]
BEARTYPE = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"  # an int may stand for a float
jaxtyping.install_import_hook(CHECKED, BEARTYPE)
torch.set_num_threads(1)  # on matrices this small, two threads wait for each other twenty times as long as they work

settings.register_profile(
    "minislice",
    max_examples=10,
    deadline=None,  # the first example pays for imports, and a shared machine for its neighbours
    derandomize=True,  # the same examples on every run: a failure is a change in the code
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("minislice")


@pytest.hookimpl(trylast=True)  # of the tests that are left when others are deselected
def pytest_collection_modifyitems(items):
    """Every worker begins with a share of the notebooks, the longest tests, and takes its part of the others then."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    notebooks = [item for item in items if "notebook_runs" in item.name]
    others = [item for item in items if "notebook_runs" not in item.name]
    share = -(-len(others) // workers)  # rounded up
    for worker in reversed(range(workers)):
        others[worker * share : worker * share] = notebooks[worker::workers]
    items[:] = others


def pytest_collection_finish():
    """What was imported stays. Python needn't look for garbage in it, which takes a quarter of a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def figures():
    """A test's figures are closed: matplotlib warns where many are open."""
    from matplotlib import pyplot

    yield
    pyplot.close("all")


@pytest.fixture
def unchecked(monkeypatch):
    """Annotations aren't checked, as for a user: only tests check them."""
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


@pytest.fixture
def no_work(monkeypatch):
    """A command must not load a model: it tells before what can't be done."""
    for loads in ("load", "TrainedWeights"):
        monkeypatch.setattr(f"minislice.command.inputs.{loads}", lambda *_, **__: pytest.fail("work has begun"))


@pytest.fixture
def run(capfd):
    """Run a command in this process: its exit status, standard output and standard error."""
    from minislice.command.cli import main

    def run(*arguments) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capfd.readouterr()

    return run
