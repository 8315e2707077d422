"""A Redis URL that cannot be read is refused with the command line, and nothing of it is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamserve.router import config
from streamserve.runtime import redis_url
from streamserve.runtime.errors import SetupError
from streamserve.worker import options

VARIABLE = "STREAMSERVE_REDIS_URL"
WHO = ["--namespace", "local", "--pair", "tiny", "--pair-uid", "u1", "--config", "config.json"]
WORKER = [*WHO, "--engine", "Simulator", "--role", "decode", "--id", "w", "--lane", "l", "--revision", "r1"]
ROUTER = [*WHO, "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]

REFUSED = {
    "an address": ("hidden:6379", "it is no Redis URL"),
    "the URL of something else": ("http://:hidden@h", "it is no Redis URL"),
    "a port of letters": ("redis://h:hidden", "its port is not a number"),
    "a port that is too large": ("redis://:hidden@h:65536", "its port is not a number up to 65535"),
    "a password with a slash in it": ("redis://:hidden/hidden@h:6379/0", "%2F"),
    "a password of a number, a slash and more": ("redis://:12/hidden@h:6379/0", "its database is not a number"),
    "a database in other digits": ("redis://:hidden@h/²", "its database is not a number"),
    "a password of a number, a question mark and more": ("redis://:12?hidden=1@h:6379/0", "%3F"),
    "an option with another value": ("redis://:hidden@h/0?socket_timeout=hidden", "an option after its ?"),
    "an option that only TLS has": ("redis://:hidden@h/0?ssl_ca_certs=hidden", "an option after its ?"),
    "a protocol that there is not": ("redis://:hidden@h/0?protocol=9", "an option after its ?"),
    "half of an IPv6 address": ("redis://:hidden@[::1", "its host cannot be read"),
    "a host that Unicode normalizes to another": ("redis://:hidden@h℀x", "its host cannot be read"),
    "no socket": ("unix://?password=hidden", "it names no socket"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_without_a_word_of_it(case: str) -> None:
    url, why = REFUSED[case]
    with pytest.raises(SetupError) as refused:
        redis_url.chosen(url, {}, VARIABLE)
    assert str(refused.value).startswith("--redis: ")
    assert why in str(refused.value)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "parse", [lambda: options.parse(WORKER), lambda: config.parse(ROUTER)], ids=["worker", "router"]
)
def test_a_process_refuses_it_with_its_command_line(
    parse: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "redis://h:hidden")
    with pytest.raises(SetupError, match=r"^\$STREAMSERVE_REDIS_URL: its port is not a number"):
        parse()


GOOD = [
    "redis://h",
    "redis://user:p%2Fss%3F@h:7/3?socket_timeout=5",
    "rediss://h?ssl_ca_certs=/ca.crt&ssl_certfile=/tls.crt&ssl_keyfile=/tls.key&ssl_check_hostname=false",
    "unix:///run/redis.sock?db=2",
]


@pytest.mark.parametrize("url", GOOD)
def test_what_both_clients_read_is_taken(url: str) -> None:
    assert redis_url.chosen(url, {VARIABLE: "redis://another"}, VARIABLE) == url
    assert redis_url.chosen(None, {VARIABLE: url}, VARIABLE) == url
    assert redis_url.chosen(None, {VARIABLE: ""}, VARIABLE) is None
