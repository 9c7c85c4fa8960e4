"""What the end-to-end tests share. A module may set HOSTS (of its simulator, 1) and NICS (of its shared host, 2)."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.chains import libcni_of
from cni.libcni import Libcni
from cni.plugin_process import PlayedAgent, Run, played, runs
from machines.hosts import Host, NewHost, hosts_of, install
from machines.simulator import Sim, running_sim


@pytest.fixture(scope="session")
def plugin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="module")
def sim(request: pytest.FixtureRequest) -> Iterator[Sim]:
    """A simulator for the module, with HOSTS hosts."""
    with running_sim("--hosts", str(getattr(request.module, "HOSTS", 1))) as running:
        yield running


@pytest.fixture(scope="module")
def host_names(sim: Sim) -> Iterator[str]:
    """The hosts of the module's simulator, each to be used by one test."""
    return iter(sim.info["namespaces"]["hosts"])


@pytest.fixture(scope="module")
def lasting_host(
    sim: Sim, host_names: Iterator[str], plugin_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NewHost]:
    """As `new_host`, for hosts that a module's tests share."""
    with hosts_of(sim, host_names, tmp_path_factory.mktemp("lasting"), plugin_file) as take:
        yield take


@pytest.fixture
def new_host(sim: Sim, host_names: Iterator[str], plugin_file: Path, tmp_path: Path) -> Iterator[NewHost]:
    """Takes the next unused host of the simulator; agents and containers are gone when the test ends."""
    with hosts_of(sim, host_names, tmp_path, plugin_file) as take:
        yield take


@pytest.fixture(scope="module")
def pool(request: pytest.FixtureRequest) -> int:
    """NICs of the module's shared host: NICS of them."""
    return int(getattr(request.module, "NICS", 2))


@pytest.fixture(scope="module")
def shared(lasting_host: NewHost, pool: int) -> Host:
    host = lasting_host()
    # No probes: what tests see of parked NICs shall be what the verbs have made of them.
    host.start(min_idle=pool, max_idle=pool, max_nics=pool, duplicate_probe="false")
    return host


@pytest.fixture
def host(shared: Host, pool: int) -> Iterator[Host]:
    """A host that the module's tests share, with all its NICs idle before the test and after it."""
    shared.wait_idle(pool)
    yield shared
    for attachment in shared.attachments():
        conf = shared.conf() | {"name": attachment["network"]}
        shared.delete(attachment["container_id"], attachment["ifname"], conf)
    shared.wait_idle(pool)


@pytest.fixture
def library(host: Host) -> Libcni:
    return libcni_of(host)


@pytest.fixture(scope="session")
def run(plugin_file: Path) -> Run:
    """Executes the installed plugin alone, without an agent or a host."""
    return runs(plugin_file)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[PlayedAgent]:
    """Plays the agent on a unix socket."""
    path = tmp_path / "agent.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    yield from played(listener, f"unix://{path}")


@pytest.fixture
def tcp_agent() -> Iterator[PlayedAgent]:
    """Plays the agent on TCP."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    yield from played(listener, f"127.0.0.1:{listener.getsockname()[1]}")


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("some-token\n")
    return path
