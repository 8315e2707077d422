"""Redis' users follow the StreamPairs: made, removed, made again for a Redis that came back empty; on a real Redis."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis
from tests.support.processes import RedisServer

from streamserve.operator.edge.fence import Fence, NotLeader
from streamserve.operator.edge.redis_link import RedisLink
from streamserve.operator.edge.redis_users import RedisUsers, changes, read
from streamserve.runtime.redis_away import AWAY

DIGEST = "#2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
LINES = """
user default reset off
user operator on #{digest} ~ss:* +@all
user llm.router on #{digest} ~ss:llm/*/router/* +get +ping
user llm.worker on #{digest} ~ss:llm/*/worker/* +get +set +ping
user chat.worker on #{digest} ~ss:chat/*/worker/* +get +ping
garbage
""".replace("#{digest}", DIGEST)
KNOWN = read(LINES)
LLM = {"llm.router", "llm.worker"}


def test_the_file_gives_the_users_of_namespaces_and_no_others() -> None:
    assert KNOWN.keys() == LLM | {"chat.worker"}
    assert KNOWN["llm.router"] == ("on", DIGEST, "~ss:llm/*/router/*", "+get", "+ping")


CASES = {
    "the first StreamPair of a namespace": ({"llm"}, {"default", "operator"}, {}, LLM, set()),
    "nothing, when they are there as they should be": ({"llm"}, LLM, KNOWN, set(), set()),
    "those that another operator made, once more": ({"llm"}, LLM, {}, LLM, set()),
    "those that Redis has lost": ({"llm"}, {"llm.router"}, KNOWN, {"llm.worker"}, set()),
    "the last StreamPair of a namespace is gone": (set(), LLM | {"operator"}, KNOWN, set(), LLM),
    "a namespace that is no longer served": ({"llm"}, LLM | {"old.worker"}, KNOWN, set(), {"old.worker"}),
    "a namespace that is not known": (set(), {"hidden.router", "hidden.worker"}, {}, set(), set()),
    "one that somebody else made for a namespace with StreamPairs": ({"more"}, {"more.worker"}, {}, set(), set()),
    "users of other names are left alone": (set(), {"default", "operator", "backup", "a.b.worker"}, {}, set(), set()),
    "another password": ({"chat"}, {"chat.worker"}, {"chat.worker": ("on", "#old")}, {"chat.worker"}, set()),
    "a namespace without users of its own": ({"elsewhere"}, set(), {}, set(), set()),
}


@pytest.mark.parametrize(("namespaces", "present", "made", "make", "remove"), CASES.values(), ids=CASES)
def test_what_is_done_for(
    namespaces: set[str], present: set[str], made: dict[str, tuple[str, ...]], make: set[str], remove: set[str]
) -> None:
    todo = changes(KNOWN, namespaces, {"hidden"}, present, made)
    assert (set(todo.make), set(todo.remove)) == (make, remove)


class Bench:
    def __init__(self, server: RedisServer, directory: Path) -> None:
        self.server = server
        self.file = directory / "users.acl"
        self.file.write_text(LINES)
        self.fence = Fence()
        self.namespaces = {"llm"}
        self.link = RedisLink(server.url, self.fence, ())
        self.users = RedisUsers(self.file, lambda: self.namespaces, tuple, self.fence)

    async def look(self) -> set[str]:
        self.fence.raise_until(self.fence.now() + 60.0)
        await self.users.look(self.link)
        with self.server.client() as client:
            return set(client.acl_users()) - {"default"}

    def enter(self, name: str) -> redis.Redis:
        return redis.Redis(port=self.server.port, username=name, password="secret", socket_timeout=5)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    server = RedisServer(tmp_path).start()
    try:
        made = Bench(server, tmp_path)
        yield made
        await made.link.close()
    finally:
        server.kill()


async def test_users_come_with_the_first_streampair_and_go_with_the_last(bench: Bench) -> None:
    assert await bench.look() == LLM
    with bench.enter("llm.worker") as worker:
        assert worker.set("ss:llm/llama/worker/w/signals", "x")
        with pytest.raises(redis.exceptions.NoPermissionError):
            worker.get("ss:llm/llama/control/config")
        bench.namespaces = set()
        assert await bench.look() == set()
        with pytest.raises(redis.ConnectionError):
            worker.ping()


async def test_a_user_that_is_made_again_keeps_its_connections_and_their_subscriptions(bench: Bench) -> None:
    bench.file.write_text(LINES.replace("+get +set +ping", "+@all &*"))
    await bench.look()
    with bench.enter("llm.worker") as worker, worker.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("ss:llm/llama/control/config")
        heard.get_message(timeout=5)
        successor = RedisUsers(bench.file, lambda: bench.namespaces, tuple, bench.fence)
        await successor.look(bench.link)
        with bench.server.client() as client:
            assert client.publish("ss:llm/llama/control/config", "new") == 1
        message = heard.get_message(timeout=5)
        assert message is not None
        assert message["data"] == b"new"


async def test_a_redis_that_came_back_empty_has_them_again(bench: Bench) -> None:
    await bench.look()
    bench.server.kill()
    bench.server.start()
    with contextlib.suppress(*AWAY):  # the connection of before
        await bench.look()
    assert await bench.look() == LLM


async def test_another_password_in_the_file_counts_at_the_next_look(bench: Bench) -> None:
    await bench.look()
    bench.file.write_text(LINES.replace(DIGEST, "#" + "0" * 64))
    await bench.look()
    with bench.enter("llm.worker") as worker, pytest.raises(redis.AuthenticationError):
        worker.ping()


async def test_who_does_not_lead_makes_and_removes_none(bench: Bench) -> None:
    with pytest.raises(NotLeader):
        await bench.users.look(bench.link)
    with bench.server.client() as client:
        assert client.acl_users() == ["default"]


async def test_a_refusal_and_a_missing_file_are_told_once_and_end_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.file.write_text(LINES.replace("+get +set +ping", "+nosuchcommand"))
    bench.namespaces = {"llm", "chat"}
    for _ in range(3):
        assert await bench.look() == {"llm.router", "chat.worker"}, "one bad line keeps nobody else out"
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert warnings[0].startswith("Redis refuses the user llm.worker: ")
    caplog.clear()
    bench.file.unlink()
    for _ in range(3):
        assert await bench.look() == {"llm.router", "chat.worker"}
    (warning,) = caplog.records
    assert "users of Redis stay as they are" in warning.message
    bench.namespaces = {"llm"}
    bench.file.write_text(LINES)
    assert await bench.look() == LLM
