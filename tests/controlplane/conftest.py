"""One API server for the tier, with both CRDs installed; see tests/support/api_server.py."""

from collections.abc import Iterator

import pytest
from tests.support.api_server import ApiServer

from streamserve.contract.streampair.crd import definitions


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("api-server")) as server:
        for definition in definitions().values():
            server.install(definition)
        yield server
