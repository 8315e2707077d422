"""What a user sees first of each script, and the pure part of first_token.py."""

import importlib.util
import subprocess
import sys
from itertools import product
from types import ModuleType

import pytest
from benchkit.results import ROOT

SCRIPTS = ("run", "router_cpu", "first_token", "simulator", "pick_cost", "canary", "operator_scale")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_names_the_quick_mode(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        script(name).main()
    assert ended.value.code == 0
    assert "--quick" in capsys.readouterr().out


def test_the_quick_pick_runs_and_writes_nothing() -> None:
    before = sorted((ROOT / "bench" / "results").glob("*"))
    command = [sys.executable, str(ROOT / "bench" / "pick_cost.py"), "--quick"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert '"pairs": 128' in done.stdout
    assert sorted((ROOT / "bench" / "results").glob("*")) == before


def test_the_budget_of_the_first_token_adds_up_to_the_whole() -> None:
    found = {
        "bare": [(10.0, 2.0), (11.0, 2.2), (12.0, 2.4)],
        "direct": [(13.0, 5.0), (14.0, 6.0), (15.0, 7.0)],
        "whole": [(20.0, 2.0), (22.5, 2.0), (25.0, 2.0)],
    }
    rows = script("first_token").budget(found)
    parts = [row["ms"] for row in rows if not row["name"].startswith(("=", "overhead"))]
    whole = next(row["ms"] for row in rows if row["name"].startswith("="))
    assert sum(parts) == pytest.approx(whole) == 22.5
    assert rows[-1]["ms"] == pytest.approx(22.5 - 11.0)


def test_the_simulators_error_is_of_the_medians_and_judged_both_ways() -> None:
    module = script("simulator")
    sample = module.Sample
    one = module.LOADS[0]
    row = module.compared(one, [sample(0, 10.0, 2.0), sample(1, 10.0, 2.0)], [sample(0, 8.0, 2.2), sample(1, 8.0, 2.2)])
    assert (row["ttft_ms"]["error_percent"], row["ttft_ms"]["holds"]) == (-20.0, False)
    assert (row["tpot_ms"]["error_percent"], row["tpot_ms"]["holds"]) == (10.0, True)


def test_the_simulator_is_judged_on_loads_that_it_was_not_calibrated_on() -> None:
    module = script("simulator")
    for load, known in product(module.LOADS, module.CALIBRATE):
        assert load.concurrency != known.concurrency
        assert not set(load.tokens) & set(known.tokens)
        assert load.skip_prompts != known.skip_prompts
