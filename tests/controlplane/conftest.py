"""One API server for the tier, with both CRDs installed; see tests/support/api_server.py."""

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest
from tests.support.api_server import ApiServer
from tests.support.operator_bench import OperatorBench

from streamserve.contract.streampair.crd import definitions


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api-server")) as server:
        for definition in definitions().values():
            server.install(definition)
        yield server


@pytest.fixture
def bench(server: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OperatorBench]:
    """A namespace of the test's own, with Redis and a played kubelet."""
    with OperatorBench(server, tmp_path, f"operator-{crc32(request.node.nodeid.encode()):08x}") as bench:
        bench.kubelet.start()
        yield bench
