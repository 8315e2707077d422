"""Ports that are chosen now and listened on later."""

from __future__ import annotations

import socket
from random import Random

import pytest
import zmq

from streamserve.runtime import ports
from streamserve.runtime.errors import SetupError
from streamserve.runtime.ports import free_port, hold_port


def test_a_held_port_is_nobody_elses_and_its_owner_listens_on_it() -> None:
    with hold_port(Random(1)) as holder, zmq.Context() as context:
        port = holder.getsockname()[1]
        assert free_port(Random(1)) != port, "the same draw"
        with hold_port(Random(1)) as other:
            assert other.getsockname()[1] != port
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", port))
        # As vLLM listens for KV hand-overs.
        with context.socket(zmq.ROUTER) as listener, context.socket(zmq.REQ) as peer:
            listener.bind(f"tcp://127.0.0.1:{port}")
            peer.connect(f"tcp://127.0.0.1:{port}")
            peer.send(b"which blocks?")
            assert listener.poll(5_000)
            assert listener.recv_multipart()[-1] == b"which blocks?"
            peer.close(0)
            listener.close(0)


def test_a_held_port_below_the_ephemeral_range_is_free_again_when_its_holder_closes() -> None:
    holder = hold_port(Random(2))
    port = holder.getsockname()[1]
    assert ports.FIRST <= port <= ports.LAST
    holder.close()
    assert free_port(Random(2)) == port


@pytest.mark.parametrize("choose", [free_port, hold_port])
def test_no_free_port_is_said(choose: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_port(Random(3)) as holder:
        port = holder.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST", port)
        monkeypatch.setattr(ports, "LAST", port)
        with pytest.raises(SetupError, match=f"no free port of 127.0.0.1 between {port} and {port}"):
            choose(Random(3))  # type: ignore[operator]
