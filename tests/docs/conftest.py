"""What the tests of pages share: a host with an agent, where what a page shows is tried."""

from collections.abc import Iterator

import pytest

from machines.hosts import Host, lone_host


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host whose agent has only directories and a vxnet set."""
    with lone_host(tmp_path_factory.mktemp("page")) as host:
        host.start(min_idle=2, max_idle=2)
        yield host
