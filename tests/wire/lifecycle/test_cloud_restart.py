"""The cloud's API is killed and comes back: containers notice nothing, the agent serves from its pool and goes on."""

import tempfile
from pathlib import Path

import pytest

from machines.containers import address_of, pings
from machines.hosts import Host, hosts_of
from machines.simulator import eventually, needs_root, running_sim, unique_name

pytestmark = needs_root


@pytest.mark.timeout(120)
def test_agent_and_containers_live_through_a_kill_of_the_cloud(plugin_file: Path, tmp_path: Path) -> None:
    name = unique_name()
    with tempfile.TemporaryDirectory(prefix="qs", dir="/run") as directory:
        args = ("--state-dir", f"{directory}/s")
        with (
            running_sim(*args, "--hosts", "1", name=name) as first,
            hosts_of(first, iter(["host1"]), tmp_path, plugin_file) as new_host,
        ):
            host = new_host()
            agent = host.start(min_idle=2, max_idle=2)
            container, meanwhile = host.container(), host.container()
            address = address_of(host.add(container))
            host.wait_idle(2)
            first.process.kill()
            first.process.wait()
            assert container.reaches("172.20.1.1")
            other = address_of(host.add(meanwhile))
            with running_sim(*args, name=name) as second:
                goes_on = Host(second, "host1", host.directory, host.plugin, agents=host.agents)
                assert container.reaches(other)
                assert pings(goes_on.netns, address)
                assert pings(goes_on.netns, other)
                goes_on.wait_idle(2)
                held = {nic["nic_id"] for nic in goes_on.nics()}
                assert held == set(goes_on.cloud_nics())
                assert len(held) >= 4
                host.delete(container)
                host.delete(meanwhile)
                eventually(lambda: not goes_on.attachments() and goes_on.is_ready(agent), "an agent at rest")
