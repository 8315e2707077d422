"""A test run that is told to end leaves nothing running: no engine, no redis-server, no API server."""

import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]
HELD = """
import time, pathlib, pytest

@pytest.fixture
def held():
    pathlib.Path("begun").touch()
    yield
    pathlib.Path("giving back").touch()
    time.sleep(1.0)
    pathlib.Path("given back").touch()

def test_that_lasts(held):
    time.sleep(60)
"""
LIMIT_SECONDS = 30


def test_sigterm_once_or_twice_lets_fixtures_give_back_what_they_hold(tmp_path: Path) -> None:
    (tmp_path / "test_held.py").write_text(HELD)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    with subprocess.Popen(
        [*command, f"--rootdir={tmp_path}", "test_held.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        for stage in ("begun", "giving back"):
            end = time.monotonic() + LIMIT_SECONDS
            while not (tmp_path / stage).exists() and child.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=LIMIT_SECONDS)
    assert (tmp_path / "given back").exists(), said
    assert child.returncode == 2, said
