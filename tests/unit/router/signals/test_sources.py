"""Redis URLs and the fleet file: what is accepted, and that the rest is refused readably."""

from pathlib import Path

import pytest

from streamserve.router.signals import fleet_file
from streamserve.router.signals.fleet_file import FleetFileError
from streamserve.runtime.redis_wire import RedisUrl, parse_url

URLS = {
    "redis://h": ("h", 6379, "", False, 0, "", ""),
    "redis://:secret@h:7/3": ("h", 7, "", False, 3, "", "secret"),
    "rediss://me:p%40ss@h:7": ("h", 7, "", True, 0, "me", "p@ss"),
    "unix:///run/redis.sock?db=2": ("127.0.0.1", 6379, "/run/redis.sock", False, 2, "", ""),
}


@pytest.mark.parametrize("url", URLS)
def test_a_redis_url_is_read(url: str) -> None:
    parsed = parse_url(url)
    assert parsed == RedisUrl(*URLS[url], options=parsed.options)
    assert not parsed.password or parsed.password not in parsed.shown


@pytest.mark.parametrize("url", ["http://h", "h:6379", "redis://h/x"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"Redis URL|not a number"):
        parse_url(url)


def test_the_fleet_file_lists_workers_and_ignores_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    path.write_text('{"version": 2, "workers": [{"id": "w", "role": "decode", "lane": "l", "address": "h:1", "x": 1}]}')
    (listed,) = fleet_file.read(path)
    assert (listed.id, listed.role, listed.lane, listed.revision, listed.address) == ("w", "decode", "l", "", "h:1")


BROKEN = {
    "not JSON": "{",
    "no workers": "{}",
    "a role nobody has": '{"workers": [{"id": "w", "role": "x", "lane": "l", "address": "h:1"}]}',
    "no address": '{"workers": [{"id": "w", "role": "decode", "lane": "l"}]}',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_fleet_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "fleet.json"
    path.write_text(text)
    with pytest.raises(FleetFileError, match=r"fleet\.json"):
        fleet_file.read(path)


def test_a_missing_fleet_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FleetFileError, match="No such file"):
        fleet_file.read(tmp_path / "fleet.json")
    assert fleet_file.stamp(tmp_path / "fleet.json") is None
