"""The benchmark scripts run, at small size, and report what they say; what they measure is nobody's to assert here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("benchmarks")

SMALL = {
    "inference_cost.py": (["--layers", "1", "--rounds", "1", "--steps", "1"], {"OPT", "LLaMA", "Phi"}),
    "slicing_cost.py": (["--small", "--rounds", "1"], {"slicing / forward", "by phase"}),
    "streaming_cost.py": (["--shape", "tiny"], {"slicing / forward", "by phase", "peak, GiB"}),
    "gpu_cost.py": (
        ["--shape", "tiny", "--device", "cpu", "--samples", "4", "--seqlen", "64", "--matrix", "64"],
        {"seconds", "by phase", "bound"},
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("script", SMALL)
def test_a_benchmark_runs_at_small_size_and_reports(script):
    arguments, reported = SMALL[script]
    done = subprocess.run(
        [sys.executable, FOLDER / script, *arguments, "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert reported <= result.keys()
    if "by phase" in reported:
        phases = result["by phase"]
        assert {"forward", "covariance", "eigendecomposition", "projection", "weights", "adapters"} <= phases.keys()
        assert all(seconds > 0 for seconds in phases.values())
