"""A host with an agent, shared by the tests of a page."""

from collections.abc import Iterator

import pytest

from machines.hosts import Host, hosts_of, install
from machines.simulator import running_sim


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    home = tmp_path_factory.mktemp("page")
    plugin = install(home)
    with (
        running_sim("--hosts", "1") as sim,
        hosts_of(sim, iter(sim.info["namespaces"]["hosts"]), home, plugin) as take,
    ):
        host = take()
        host.start(min_idle=2, max_idle=2)
        yield host
