"""Which Secrets are read and written, when next, and what is said: the Secrets lie in memory, the clock is ours."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from cryptography import x509
from tests.support.leaves import BEGAN, DAY, NAMES_DIGEST, Pem, Signer, entry, secret

from streamserve.operator.edge.fence import NotLeader
from streamserve.operator.edge.metrics import OperatorMetrics
from streamserve.operator.edge.outcomes import ApiError, Conflict, NotFound, Refused, ServerFailed, Unreachable
from streamserve.operator.edge.renewal import ENDS, LEAST_SECONDS, MOST_SECONDS, Renewal, RenewalSettings

Body = dict[str, Any]
AUTHORITY, PODS, CLIENT = ("serving", "streamserve-ca"), ("llm", "streamserve"), ("llm", "streamserve-client")
OURS, OTHERS = Signer(), Signer()
DUE = BEGAN + 60 * DAY
MERGE = "application/merge-patch+json"


def place(key: tuple[str, str]) -> str:
    return f"/api/v1/namespaces/{key[0]}/secrets/{key[1]}"


class World:
    """Secrets by their paths, as the API server keeps them, and one operator that renews them."""

    def __init__(self, leaves: Mapping[tuple[str, str], Pem] | None = None) -> None:
        self.now = DUE
        self.leads = asyncio.Event()
        self.leads.set()
        self.version = 100
        self.asked: list[tuple[str, str]] = []
        self.failures: dict[tuple[str, str], ApiError] = {}
        self.slept: list[float] = []
        self.metrics = OperatorMetrics()
        found = {AUTHORITY: OURS.pem, **({PODS: OURS.leaf(), CLIENT: OURS.leaf()} if leaves is None else leaves)}
        self.secrets = {place(key): secret(pem, *key, other=b"kept") for key, pem in found.items()}
        for body in self.secrets.values():
            self.stored(body)
        self.renewal = Renewal(
            self,  # type: ignore[arg-type]  # the two methods that it uses
            RenewalSettings(authority=AUTHORITY, leaves=tuple(key for key in found if key != AUTHORITY)),
            self.metrics,
            leads=self.leads,
            rng=Random(1),
            utc_now=lambda: self.now,
            sleep=lambda seconds: self.sleep(seconds),  # noqa: PLW0108 (a test puts another in its place)
        )

    async def get(self, path: str) -> Body:
        self.happened("GET", path)
        if path not in self.secrets:
            raise NotFound("not found", status=404)
        return copy.deepcopy(self.secrets[path])

    async def send(self, method: str, path: str, body: Mapping[str, Any], *, content: str) -> Body:
        if not self.leads.is_set():
            raise NotLeader("this process does not hold the lease")
        self.happened(method, path)
        assert (method, content) == ("PATCH", MERGE)
        there = self.secrets[path]
        if body["metadata"]["resourceVersion"] != there["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified", status=409)
        there["metadata"]["annotations"] |= body["metadata"]["annotations"]
        there["data"] |= body["data"]
        self.stored(there)
        return there

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)

    def happened(self, method: str, path: str) -> None:
        self.asked.append((method, path))
        if (method, path) in self.failures:
            raise self.failures[method, path]

    def stored(self, body: Body) -> None:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)

    def at(self, key: tuple[str, str]) -> Body:
        return self.secrets[place(key)]

    def begins(self, key: tuple[str, str]) -> datetime:
        return x509.load_pem_x509_certificate(entry(self.at(key), "tls.crt")).not_valid_before_utc

    @property
    def written(self) -> list[str]:
        return [path for method, path in self.asked if method == "PATCH"]

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"streamserve_operator_{name}", labels)

    def renewals(self, outcome: str) -> float | None:
        return self.sample("certificate_renewals_total", outcome=outcome)


async def test_what_is_due_is_written_and_everything_else_in_the_secret_stays() -> None:
    world = World()
    await world.renewal.turn()
    assert world.written == [place(PODS), place(CLIENT)]
    body = world.at(PODS)
    made = x509.load_pem_x509_certificate(entry(body, "tls.crt"))
    made.verify_directly_issued_by(OURS.certificate)
    assert (made.not_valid_before_utc, made.not_valid_after_utc) == (DUE, DUE + 90 * DAY)
    assert body["metadata"]["annotations"] == {
        ENDS: "2026-05-31T00:00:00Z",
        "streamserve.io/certificate-names": NAMES_DIGEST,
    }
    assert entry(body, "other") == b"kept"
    assert entry(body, "tls.key").startswith(b"-----BEGIN PRIVATE KEY-----")
    assert world.renewals("ok") == 2.0
    assert world.sample("writes_total", kind="Secret", reason="TwoThirdsOfItsLife") == 2.0


async def test_what_is_not_due_is_read_and_not_written_and_the_sleep_ends_when_the_first_is() -> None:
    world = World({PODS: OURS.leaf(life=90 * DAY), CLIENT: OURS.leaf(life=60 * timedelta(seconds=1))})
    world.now = BEGAN + timedelta(seconds=10)
    assert await world.renewal.turn() == 30.0
    assert world.written == []


async def test_a_sleep_is_never_longer_than_a_minute_nor_shorter_than_a_second() -> None:
    world = World()
    world.now = BEGAN
    assert await world.renewal.turn() == MOST_SECONDS
    world.now = DUE - timedelta(microseconds=1)
    assert await world.renewal.turn() == LEAST_SECONDS


async def test_an_expired_certificate_that_somebody_writes_back_is_renewed_within_a_minute() -> None:
    """As `helm rollback` does: the Secret is as it was rendered, long ago."""
    world = World({PODS: OURS.leaf()})
    old = copy.deepcopy(world.at(PODS)["data"])
    await world.renewal.turn()
    world.now = DUE + 59 * DAY
    seconds = await world.renewal.turn()
    world.at(PODS)["data"] = old
    world.stored(world.at(PODS))
    assert seconds <= 60.0
    await world.sleep(seconds)
    await world.renewal.turn()
    assert world.begins(PODS) == world.now.replace(microsecond=0)


async def test_a_certificate_of_a_minute_is_renewed_every_forty_seconds_and_always_good() -> None:
    world = World({PODS: OURS.leaf(life=timedelta(seconds=60))})
    world.now = BEGAN
    for _ in range(20):
        seconds = await world.renewal.turn()
        ends = world.begins(PODS) + timedelta(seconds=60)
        await world.sleep(seconds)
        assert world.now < ends
    assert world.slept == [40.0] * 20
    assert len(world.written) == 19


async def test_who_wrote_at_the_same_moment_is_not_overwritten_and_is_looked_at_again() -> None:
    """As `helm upgrade` would: it has put a certificate of its own there after we read."""
    world, helms = World({PODS: OURS.leaf()}), OURS.leaf(begins=DUE)
    send = world.send

    async def late(method: str, path: str, body: Mapping[str, Any], *, content: str) -> Body:
        there = world.at(PODS)
        there["data"] = secret(helms, *PODS)["data"]
        world.stored(there)
        return await send(method, path, body, content=content)

    world.send = late  # type: ignore[method-assign]
    assert await world.renewal.turn() <= 60.0
    assert entry(world.at(PODS), "tls.crt") == helms[0]
    assert world.renewals("Conflict") == 1.0
    world.send = send  # type: ignore[method-assign]
    await world.renewal.turn()
    assert entry(world.at(PODS), "tls.crt") == helms[0], "it is not due"


async def test_what_another_authority_signed_is_left_alone_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    world = World({PODS: OTHERS.leaf(), CLIENT: OURS.leaf()})
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            await world.renewal.turn()
    assert world.written == [place(CLIENT)]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    assert "Secret llm/streamserve: another authority signed it" in said[0]


TROUBLES: dict[str, tuple[tuple[str, str], ApiError, str]] = {
    "it may not read": (("GET", place(PODS)), Refused("forbidden", status=403), "rbac.create and tls.renew"),
    "it may not write": (("PATCH", place(PODS)), Refused("forbidden", status=403), "rbac.create and tls.renew"),
    "there is no Secret": (("GET", place(PODS)), NotFound("no", status=404), "`helm upgrade` makes it"),
    "the server fails": (("PATCH", place(PODS)), ServerFailed("boom", status=500), "it is tried again"),
    "nobody answers": (("GET", place(PODS)), Unreachable("no route"), "it is tried again"),
    "it is immutable": (("PATCH", place(PODS)), Refused("data: Invalid", status=422), "immutable"),
    "it may not read the authority": (("GET", place(AUTHORITY)), Refused("no", status=403), "no certificate can"),
}


@pytest.mark.parametrize(("where", "error", "says"), TROUBLES.values(), ids=TROUBLES)
async def test_trouble_is_said_once_with_what_to_do_and_again_when_it_is_over(
    where: tuple[str, str], error: ApiError, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.failures[where] = error
    with caplog.at_level(logging.INFO):
        waits = [await world.renewal.turn() for _ in range(8)]
        assert all(LEAST_SECONDS <= wait <= 60.0 for wait in waits)
        warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(warned) == 1
        assert says in warned[0]
        del world.failures[where]
        assert await world.renewal.turn() == MOST_SECONDS
    assert [record.getMessage().endswith("is well again") for record in caplog.records].count(True) == 1
    assert world.begins(PODS) == DUE


async def test_one_secret_in_trouble_does_not_keep_another_from_its_certificate() -> None:
    world = World()
    world.failures["GET", place(PODS)] = NotFound("no", status=404)
    await world.renewal.turn()
    assert world.written == [place(CLIENT)]


async def test_without_the_authority_nothing_is_written_but_the_ends_are_still_told() -> None:
    world = World()
    del world.secrets[place(AUTHORITY)]
    await world.renewal.turn()
    assert world.written == []
    ends = (BEGAN + 90 * DAY).timestamp()
    assert world.sample("certificate_expiry_timestamp_seconds", secret="llm/streamserve") == ends


async def test_the_end_of_the_authority_is_told_as_well_also_where_it_cannot_sign() -> None:
    world = World()
    await world.renewal.turn()
    ends = OURS.certificate.not_valid_after_utc.timestamp()
    assert world.sample("certificate_expiry_timestamp_seconds", secret="serving/streamserve-ca") == ends
    world = World()
    del world.at(AUTHORITY)["data"]["tls.key"]
    await world.renewal.turn()
    assert world.sample("certificate_expiry_timestamp_seconds", secret="serving/streamserve-ca") == ends


async def test_an_authority_that_cannot_be_read_is_said_and_nothing_is_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.at(AUTHORITY)["data"]["tls.key"] = "no base64!"
    for _ in range(2):
        await world.renewal.turn()
    assert world.written == []
    assert [record.getMessage() for record in caplog.records] == [
        "Secret serving/streamserve-ca: no certificate can be renewed without it: "
        "its tls.crt or tls.key cannot be read: restore the Secret from a backup"
    ]


@pytest.mark.parametrize("data", [None, {}, {"tls.crt": "%"}, {"tls.crt": ""}], ids=["none", "empty", "bad", "blank"])
async def test_a_secret_without_a_certificate_is_left_alone(data: Body | None) -> None:
    world = World({PODS: OURS.leaf()})
    world.at(PODS)["data"] = data
    assert await world.renewal.turn() == MOST_SECONDS
    assert world.written == []


async def test_no_key_and_no_certificate_is_in_any_log_line(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    body = str(world.at(PODS)["data"]["tls.key"])
    world.failures["PATCH", place(CLIENT)] = Refused(f"data[tls.key]: Invalid value: {body}", status=422)
    with caplog.at_level(logging.DEBUG):
        await world.renewal.turn()
    values = [value for each in world.secrets.values() for value in each["data"].values() if len(value) > 20]
    assert caplog.text
    assert not any(value in caplog.text for value in [*values, body, "PRIVATE KEY"])


async def test_only_a_leader_looks_and_who_was_one_tells_no_ends_any_more() -> None:
    world = World()
    world.leads.clear()
    told: list[float | None] = []

    def tell() -> None:
        told.append(world.sample("certificate_expiry_timestamp_seconds", secret="llm/streamserve"))

    async def deposed_in_its_sleep(seconds: float) -> None:
        tell()
        world.leads.clear()

    world.sleep = deposed_in_its_sleep  # type: ignore[method-assign]
    task = asyncio.create_task(world.renewal.run())
    await settle()
    assert world.asked == []
    world.leads.set()
    await settle()
    tell()
    assert told == [(DUE + 90 * DAY).timestamp(), None]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    """Let a task run until it waits for something that is not there; nothing here takes time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_who_loses_the_lease_in_the_midst_of_it_writes_no_more() -> None:
    world = World()
    get = world.get

    async def deposed(path: str) -> Body:
        body = await get(path)
        if path == place(CLIENT):
            world.leads.clear()
        return body

    world.get = deposed  # type: ignore[method-assign]
    assert await world.renewal.turn() == LEAST_SECONDS
    assert world.written == [place(PODS)]
    assert world.renewals("NotLeader") == 1.0
