"""What holds for every test."""

import signal
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

# A machine that does other work too makes an example slow and not wrong. (Hypothesis' own profile for CI says so too.)
if settings.default is not None and settings.default.deadline is not None:
    settings.register_profile("streamserve", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("streamserve")


def pytest_configure(config: pytest.Config) -> None:
    """A run that is told to end (by a time limit, by CI) ends as with Ctrl-C: what fixtures started, they stop."""
    signal.signal(signal.SIGTERM, _end)


def _end(*_: object) -> NoReturn:
    # Told again, by who told the whole process group, it goes on giving back.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
