"""Under Mesos, as its isolator `network/cni` calls a plugin: no library, no version, a bare environment."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cni.chains import wait_until_all_is_back
from machines.hosts import Host, NewHost
from machines.simulator import eventually, needs_root, run
from pages import ROOT
from runtimes.mesos import PORT_MAPPER, Failure, Mesos, write_port_mapper

pytestmark = needs_root
HOSTS = 7

EXAMPLE = ROOT / "examples" / "mesos" / "mynet.conf"
LABELS = {"labels": [{"key": "team", "value": "blue"}]}


@pytest.fixture
def host(new_host: NewHost) -> Host:
    host = new_host()
    host.start(min_idle=2, max_idle=2)
    return host


@pytest.fixture
def mesos(host: Host) -> Iterator[Mesos]:
    """With the network of the example; agents of tests keep their token in a place of their own."""
    directory = host.directory / "cni"
    directory.mkdir()
    mesos = Mesos(host.directory / "mesos", host.plugin.parent, directory, host.netns)
    document = json.loads(EXAMPLE.read_text())
    document["args"] |= {"TokenFile": str(host.token_file), "SpoolDir": str(host.spool)}
    write(mesos, "mynet.conf", document)
    yield mesos
    for handle in mesos.root.glob("*/ns"):
        run("umount", "--no-mtab", str(handle), check=False)


def write(mesos: Mesos, name: str, document: dict[str, Any]) -> None:
    (mesos.config_dir / name).write_text(json.dumps(document))


def network(mesos: Mesos, **keys: Any) -> dict[str, Any]:
    """That of the example, with *keys* over its own."""
    return {**json.loads((mesos.config_dir / "mynet.conf").read_text()), **keys}


@contextmanager
def task() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a network namespace of its own."""
    here = Path("/proc/self/ns/net").readlink()
    process = subprocess.Popen(("unshare", "--net", "sleep", "600"))
    try:
        there = Path(f"/proc/{process.pid}/ns/net")
        eventually(lambda: there.readlink() != here, "a namespace of its own")
        yield process
    finally:
        process.kill()
        process.wait()


def addresses(handle: Path) -> dict[str, str]:
    """MAC and IPv4 address by interface, in the namespace that *handle* leads to."""
    rows = json.loads(run("nsenter", f"--net={handle}", "ip", "-j", "-4", "addr").stdout)
    return {row["ifname"]: f"{row['addr_info'][0]['local']}/24" for row in rows if row and row["ifname"] != "lo"}


@pytest.mark.cni(76)
def test_a_container_joins_its_networks_all_at_once(host: Host, mesos: Mesos) -> None:
    """eth0, eth1: each with a NIC of its own, told as `ip4` of 0.1.0; all are back when the container ends."""
    write(mesos, "any name will do", network(mesos, name="other", dns={"nameservers": ["10.0.0.53"]}))
    infos: list[dict[str, Any]] = [{"name": "mynet", "labels": LABELS}, {"name": "other"}]
    with task() as process:
        answers = mesos.isolate("5f0c1bd6.debug-1", process.pid, infos)
        handle = mesos.handle("5f0c1bd6.debug-1")
        assert addresses(handle) == {"eth0": answers["mynet"]["ip4"]["ip"], "eth1": answers["other"]["ip4"]["ip"]}
        assert answers["other"]["dns"] == {"nameservers": ["10.0.0.53"]}
        held = {(a["network"], a["container_id"], a["ifname"]): a["labels"] for a in host.attachments()}
        assert held == {
            ("mynet", "5f0c1bd6.debug-1", "eth0"): LABELS["labels"],
            ("other", "5f0c1bd6.debug-1", "eth1"): [],
        }
        mesos.cleanup("5f0c1bd6.debug-1")
    assert not [*mesos.root.iterdir()]
    wait_until_all_is_back(host)


@pytest.mark.defect("others-13")
def test_after_a_reboot_del_comes_without_a_namespace(host: Host, mesos: Mesos) -> None:
    """The checkpoint is all Mesos has left; its namespace's handle is a plain file now."""
    with task() as process:
        mesos.isolate("c1", process.pid, [{"name": "mynet"}])
        host.agent.kill()
    run("umount", "--no-mtab", str(mesos.handle("c1")))
    host.start(idle=0, min_idle=2, max_idle=2)
    mesos.cleanup("c1")
    assert not [*mesos.root.iterdir()]
    wait_until_all_is_back(host)


@pytest.mark.cni(53)
def test_a_container_is_cleaned_up_while_the_agent_is_away(host: Host, mesos: Mesos) -> None:
    """Mesos takes the DEL for done, and the agent does it when it is back."""
    with task() as process:
        mesos.isolate("c1", process.pid, [{"name": "mynet"}])
        host.agent.stop()
        mesos.cleanup("c1")
        assert not [*mesos.root.iterdir()]
        host.start(idle=0, min_idle=2, max_idle=2)
        assert host.attachments() == []
    wait_until_all_is_back(host)


def test_the_port_mapper_hands_its_own_args_to_what_it_wraps(host: Host, mesos: Mesos) -> None:
    """So `args` stand beside `delegate`, not in it. It wants a namespace for DEL: after a reboot the agent frees."""
    mesos.plugins_dir = host.directory / "plugins"
    mesos.plugins_dir.mkdir()
    shutil.copy2(host.plugin, mesos.plugins_dir)
    write_port_mapper(mesos.plugins_dir)
    mapped = network(mesos, name="mapped", type=PORT_MAPPER, chain="MESOS", delegate={"type": "qingcni"})
    write(mesos, "mapped.conf", mapped)
    with task() as process:
        answers = mesos.isolate("c1", process.pid, [{"name": "mapped"}])
        assert addresses(mesos.handle("c1")) == {"eth0": answers["mapped"]["ip4"]["ip"]}
        mesos.cleanup("c1")
        wait_until_all_is_back(host)
        mesos.isolate("c2", process.pid, [{"name": "mapped"}])
    run("umount", "--no-mtab", str(mesos.handle("c2")))
    with pytest.raises(Failure):
        mesos.cleanup("c2")
    wait_until_all_is_back(host)


def test_a_network_that_cannot_be_joined_ends_the_container_and_nothing_stays(host: Host, mesos: Mesos) -> None:
    """All ADDs are awaited, and then all are followed by a DEL: of the one that failed too."""
    route = {"dst": "10.96.0.0/12", "gw": "192.0.2.1"}
    write(mesos, "bad.conf", network(mesos, name="bad", ipam={"type": "qingcni", "routes": [route]}))
    with task() as process:
        with pytest.raises(Failure, match=r"192\.0\.2\.1"):
            mesos.isolate("c1", process.pid, [{"name": "mynet"}, {"name": "bad"}])
        assert addresses(mesos.handle("c1")).keys() == {"eth0"}
        assert [held["network"] for held in host.attachments()] == ["mynet"]
        mesos.cleanup("c1")
    wait_until_all_is_back(host)


def test_mesos_takes_routes_only_with_a_type_beside_them(host: Host, mesos: Mesos) -> None:
    """It skips the file otherwise; the type has to be a plugin that is there, and is not asked."""
    route = {"dst": "10.96.0.0/12", "gw": "172.20.1.1"}
    write(mesos, "bare.conf", network(mesos, name="bare", ipam={"routes": [route]}))
    write(mesos, "typed.conf", network(mesos, name="typed", ipam={"type": "qingcni", "routes": [route]}))
    write(mesos, "absent.conf", network(mesos, name="absent", ipam={"type": "host-local"}))
    write(mesos, "list.conflist", {"name": "list", "plugins": [network(mesos)]})
    assert mesos.networks().keys() == {"mynet", "typed"}
    with task() as process:
        answers = mesos.isolate("c1", process.pid, [{"name": "typed"}])
        assert route in answers["typed"]["ip4"]["routes"]
        mesos.cleanup("c1")
    wait_until_all_is_back(host)


def test_a_configuration_of_0_3_1_leaves_mesos_without_an_address(host: Host, mesos: Mesos) -> None:
    """Why the example has no version: the container gets its NIC, and Mesos reads no address of it."""
    write(mesos, "newer.conf", network(mesos, name="newer", cniVersion="0.3.1"))
    with task() as process:
        answers = mesos.isolate("c1", process.pid, [{"name": "newer"}])
        assert answers["newer"] == {"dns": {}}
        assert addresses(mesos.handle("c1")).keys() == {"eth0"}
        mesos.cleanup("c1")
    wait_until_all_is_back(host)
