"""What the command line alone can refuse, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from streamserve.runtime.errors import SetupError
from streamserve.worker import options

WHO = [
    *("--role", "decode", "--id", "lane-0-decode-0", "--lane", "lane-0", "--revision", "r1"),
    *("--namespace", "local", "--pair", "tiny", "--pair-uid", "u1", "--config", "config.json"),
]
SIMULATED = [*WHO, "--engine", "Simulator"]


@dataclass(frozen=True)
class Case:
    arguments: list[str]
    message: str


REFUSED = {
    "no model for a real engine": Case(WHO, "needs --model"),
    "a model folder that is not there": Case([*WHO, "--model", "/no/such"], "--model /no/such is no model folder"),
    "engine arguments that are no JSON": Case([*SIMULATED, "--engine-args", "max=1"], "--engine-args is no JSON"),
    "engine arguments that are no object": Case([*SIMULATED, "--engine-args", "[1]"], "no JSON object"),
    "a depth that no engine has": Case([*SIMULATED, "--max-depth", "17"], "use 1 to 16"),
    "half of the TLS files": Case([*SIMULATED, "--tls-ca", "ca.pem"], "three files"),
    "an address without a port": Case([*SIMULATED, "--grpc", "localhost"], "write host:port"),
    "a name that could not be a Kubernetes name": Case([*SIMULATED, "--pair", "My Pair"], "not a DNS label"),
    "a calibration for a real engine": Case([*WHO, "--model", "m", "--calibration", "c"], "for --engine Simulator"),
    "a drain without end": Case([*SIMULATED, "--drain-seconds", "inf"], "use 0 to 3600"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refused_with_a_remedy(case: Case) -> None:
    with pytest.raises(SetupError, match=case.message.replace("/", "/")):
        options.parse(case.arguments, {})


def test_an_unknown_flag_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        options.parse([*SIMULATED, "--modle", "x"], {})
    assert ended.value.code == 2
    assert "unrecognized arguments: --modle" in capsys.readouterr().err


def test_redis_comes_from_the_flag_then_from_the_environment() -> None:
    environment = {"STREAMSERVE_REDIS_URL": "redis://from-environment"}
    assert options.parse(SIMULATED, {}).redis_url is None
    assert options.parse(SIMULATED, environment).redis_url == "redis://from-environment"
    assert options.parse([*SIMULATED, "--redis", "redis://flag"], environment).redis_url == "redis://flag"


def test_engine_arguments_become_text_whatever_json_type_they_have(tmp_path: Path) -> None:
    given = options.parse([*SIMULATED, "--engine-args", '{"a": "x", "b": 2, "c": true, "d": [0.5]}'], {})
    assert given.engine_args == {"a": "x", "b": "2", "c": "true", "d": "[0.5]"}


def test_the_simulator_speculates_unless_told_otherwise() -> None:
    assert options.parse(SIMULATED, {}).method == "DraftModel"
    assert options.parse([*SIMULATED, "--method", "None"], {}).method == "None"
    assert options.parse([*WHO, "--model", "hub/id"], {}).method == "None"
