"""The scripts that measure run, at small size, and report what they say."""

import json
import sys
from importlib import import_module

import pytest

ONCE = ["--rounds", "1", "--threads", "1"]
FEW = ["--shape", "tiny", "--samples", "2", "--seqlen", "64", "--beyond", "both"]
SMALL = {  # the arguments of a script, and what it reports
    "inference_cost": (["--layers", "1", "--vocabulary", "512", "--steps", "1", *ONCE], {"OPT", "LLaMA", "Phi"}),
    "slicing_cost": ([*FEW, *ONCE], {"slicing / forward", "by phase", "beyond / slicing"}),
    "streaming_cost": (["--shape", "tiny", "--threads", "1"], {"slicing / forward", "by phase", "peak, GiB"}),
}


@pytest.fixture
def printed(monkeypatch, capsys):
    """What a script prints."""

    def printed(script: str, *arguments) -> str:
        monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
        import_module(script).main()
        return capsys.readouterr().out

    return printed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("script", SMALL)
def test_a_benchmark_runs_at_small_size_and_reports(script, printed):
    arguments, reported = SMALL[script]
    result = json.loads(printed(script, *arguments, "--json"))
    assert reported <= result.keys()
    assert all(seconds > 0 for seconds in result.get("by phase", {}).values())
