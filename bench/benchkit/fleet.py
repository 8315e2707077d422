"""StreamServe's own processes for a benchmark: Redis, one lane, a router, started as the tests start them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchkit.results import ROOT, BenchError

sys.path.append(str(ROOT / "tests" / "support"))
from processes import SPECULATION, LocalFleet, Process, wait_until

from streamserve.contract.runtime_config import (
    AdmissionConfig,
    ConfigId,
    RuntimeConfig,
    SpeculationConfig,
)
from streamserve.v1 import worker_pb2, worker_pb2_grpc

ENGINE_START_SECONDS = 240.0


class Fleet(LocalFleet):
    """`LocalFleet` with arguments for each role of its own, and depth changes that are proven by the workers."""

    def __init__(
        self,
        directory: Path,
        *,
        engine: str,
        role_arguments: Mapping[str, Sequence[str]],
        speculation: SpeculationConfig,
        environment: Mapping[str, str] | None = None,
        lanes: int = 1,
        start_seconds: float = ENGINE_START_SECONDS,
    ) -> None:
        self._role_arguments = role_arguments
        super().__init__(
            directory,
            lanes=lanes,
            engine=engine,
            # A real engine gets its models, and whether it drafts at all, by `role_arguments`.
            worker_arguments=() if engine == "Vllm" else SPECULATION,
            worker_environment=environment,
            config=RuntimeConfig(
                id=ConfigId(uid="pair-uid-1", generation=1),
                served_names=("tiny",),
                speculation=speculation,
                admission=AdmissionConfig(max_queue_ms=300_000),
            ),
            start_seconds=start_seconds,
        )

    def _worker(
        self,
        name: str,
        role: str,
        lane: str,
        engine: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
    ) -> Process:
        return super()._worker(name, role, lane, engine, [*arguments, *self._role_arguments.get(role, ())], environment)

    def speculate(self, **fields: Any) -> None:
        """Another depth policy, in force when this returns. Raises BenchError when the workers do not adopt it."""
        import grpc

        config = self.configure(speculation=SpeculationConfig(**fields))
        for worker in self.workers:
            with grpc.insecure_channel(worker.ready["grpc"]) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)

                def adopted(stub: Any = stub) -> bool:
                    state = stub.GetState(worker_pb2.GetStateRequest(), timeout=5)
                    return bool(state.config_generation >= config.id.generation)

                try:
                    wait_until(adopted, seconds=10, what=f"{worker.name} adopts generation {config.id.generation}")
                except AssertionError as error:
                    raise BenchError(str(error)) from None
        time.sleep(0.2)

    def states(self) -> dict[str, worker_pb2.GetStateResponse]:
        import grpc

        found = {}
        for worker in self.workers:
            with grpc.insecure_channel(worker.ready["grpc"]) as channel:
                stub = worker_pb2_grpc.WorkerServiceStub(channel)
                found[worker.name] = stub.GetState(worker_pb2.GetStateRequest(), timeout=5)
        return found


def engine_arguments(arguments: Mapping[str, str]) -> list[str]:
    return ["--engine-args", json.dumps(dict(arguments))]
