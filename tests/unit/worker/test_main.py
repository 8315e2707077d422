"""What the worker's own loop tells in its log."""

from __future__ import annotations

import logging

import pytest

from streamserve.worker.__main__ import tell_fallback


def test_why_the_law_of_depth_failed_is_told_once_for_each_cause(caplog: pytest.LogCaptureFixture) -> None:
    told = ""
    with caplog.at_level(logging.WARNING):
        for now in ("", "ValueError: a", "ValueError: a", "", "ValueError: a", "KeyError: b"):
            told = tell_fallback(told, now)
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["a", "a", "b"]
