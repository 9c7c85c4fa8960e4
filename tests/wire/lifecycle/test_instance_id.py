"""The instance is the one whose NIC --iface has: another id is refused, and a missing one is found."""

from pathlib import Path

from machines.hosts import NewHost
from machines.simulator import eventually, needs_root

pytestmark = needs_root
HOSTS = 4


def test_the_id_of_another_host_is_refused_with_status_2_and_no_nic_is_plugged_into_that_host(
    new_host: NewHost,
) -> None:
    host, other = new_host(), new_host()
    parking = Path(f"/run/netns/qingcni-{other.instance_id}")
    agent = host.launch(instance_id=other.instance_id)
    assert agent.process.wait(60) == 2
    nic_id = host.sim.host(host.name)["nic_id"]
    assert f"NIC {nic_id} of --iface belongs to instance {host.instance_id}, not {other.instance_id}" in agent.stderr
    assert f"set --instance-id {host.instance_id}" in agent.stderr
    assert agent.stderr.count("\n") == 1
    assert not host.cloud_nics()
    assert not other.cloud_nics()
    assert not parking.exists()


def test_without_a_file_the_agent_finds_its_instance_and_remembers_it(new_host: NewHost) -> None:
    host = new_host()
    missing = host.directory / "nowhere"
    default = Path("/etc/qingcloud/instance-id")
    assert not default.exists(), "this machine is an instance"
    agent = host.start(idle=1, instance_id_file=None, min_idle=1, max_idle=1)
    assert host.status()["instance_id"] == host.instance_id
    container = host.container()
    host.add(container)
    host.delete(container)
    assert (host.state_dir / "found-instance").read_text().split()[0] == host.instance_id
    agent.stop()
    refused = host.launch(instance_id_file=missing)  # a file that the operator names must exist
    assert refused.process.wait(60) == 2
    assert str(missing) in refused.stderr
    # what was found serves while the cloud is silent, and is removed with everything else
    silent = host.directory / "silent.yaml"
    silent.touch(mode=0o600)
    keys = Path(host.sim.host(host.name)["client_yaml"]).read_text()
    silent.write_text("\n".join(line for line in keys.splitlines() if not line.startswith("port")) + "\nport: 9\n")
    agent = host.launch(instance_id_file=None, QYAccessFilePath=silent, min_idle=1, max_idle=1)
    eventually(lambda: host.is_ready(agent), "an agent that serves from disk")
    host.add(host.container())
    agent.stop()
    host.cleanup("--force", instance_id_file=None)
    assert not (host.state_dir / "found-instance").exists()
