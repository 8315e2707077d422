"""The thread that listens for KV hand-overs, as vLLM starts it: named, and waited for without a limit."""

import errno
import socket
import threading

import pytest
import zmq

from streamserve.worker.pipeserve import handover


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    statuses: list[int] = []
    handover.end_without_listener(statuses.append)
    return statuses


def run(name: str, error: Exception | None) -> None:
    def body() -> None:
        if error is not None:
            raise error

    thread = threading.Thread(target=body, name=name)
    thread.start()
    thread.join(10)


def test_a_listener_that_cannot_bind_ends_the_engine_and_says_why(
    ends: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, zmq.Context() as context:
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with context.socket(zmq.ROUTER) as listener, pytest.raises(zmq.ZMQError) as refused:
            listener.bind(address)
    run(handover.LISTENER, refused.value)
    assert ends == [handover.EXIT_STATUS]
    assert f"cannot listen for KV hand-overs: Address already in use (addr='{address}')" in caplog.text


@pytest.mark.parametrize(
    ("name", "error"),
    [
        pytest.param(handover.LISTENER, None, id="a listener that was told to stop"),
        pytest.param(handover.LISTENER, ValueError("not a message"), id="a listener that a stranger sent garbage"),
        pytest.param("another", zmq.ZMQError(errno.EADDRINUSE), id="another thread that fails"),
    ],
)
def test_nothing_else_ends_it(ends: list[int], name: str, error: Exception | None) -> None:
    run(name, error)
    assert ends == []
