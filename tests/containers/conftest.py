"""What the tests with real container runtimes share."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from machines.machine import Machine, machine_on
from machines.simulator import running_sim


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, ...]]:
    """Two hosts of a simulated cloud, as machines; without agents yet."""
    with ExitStack() as stack:
        sim = stack.enter_context(running_sim("--hosts", "2"))
        names = sim.info["namespaces"]["hosts"]
        yield tuple(stack.enter_context(machine_on(sim, name, tmp_path_factory.mktemp(name))) for name in names)
