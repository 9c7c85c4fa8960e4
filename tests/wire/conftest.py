"""What the end-to-end tests share; each module starts a simulator of its own as the fixture `sim`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hosts import NewHost, hosts_of, install
from simulator import Sim


@pytest.fixture(scope="session")
def plugin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def host_names(sim: Sim) -> Iterator[str]:
    """The hosts of the module's simulator, each to be used by one test."""
    return iter(sim.info["namespaces"]["hosts"])


@pytest.fixture
def new_host(sim: Sim, host_names: Iterator[str], plugin_file: Path, tmp_path: Path) -> Iterator[NewHost]:
    """Takes the next unused host of the simulator; agents and containers are gone when the test ends."""
    with hosts_of(sim, host_names, tmp_path, plugin_file) as take:
        yield take
