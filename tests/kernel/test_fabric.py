"""The simulator's fabric on real namespaces: links appear, vanish, return and reach each other."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from machines.containers import new_namespace
from machines.simulator import QINGCLOUD_SIM, Sim, eventually, links, needs_root, run, running_sim, unique_name
from qingcloud_cni.sim.fabric.shell import inside

pytestmark = needs_root

GONE = "NO LINK"


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--seed", "7") as running:
        yield running


def move_in(host: str, pod: str, nic: dict[str, str], gateway: str) -> None:
    """Do by hand what a CNI plugin does."""
    name = eventually(lambda: links(host).get(nic["nic_id"]), "the NIC's link on the host")["ifname"]
    run("ip", "-n", host, "link", "set", name, "netns", pod, "name", "eth0")
    batch = f"addr add {nic['private_ip']}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}\n"
    run("ip", "-n", pod, "-batch", "-", input=batch)


def ping(netns: str, address: str) -> bool:
    done = run("ip", "netns", "exec", netns, "ping", "-c", "3", "-i", "0.1", "-W", "2", address, check=False)
    return done.returncode == 0


def test_hosts_reach_each_other_and_every_gateway(sim: Sim) -> None:
    assert ping(sim.netns("host1"), sim.host("host2")["address"])
    for vxnet in sim.info["vxnets"]:
        assert ping(sim.netns("host2"), vxnet["manager_ip"]), vxnet


def test_a_hosts_files_are_those_of_a_real_one(sim: Sim) -> None:
    host = sim.host()
    access = Path(host["client_yaml"])
    assert access.stat().st_mode & 0o777 == 0o600
    keys = [line.partition(":")[0] for line in access.read_text().splitlines()]
    assert keys == ["qy_access_key_id", "qy_secret_access_key", "zone", "host", "port", "protocol"]
    assert Path(host["instance_id_file"]).read_bytes() == host["instance_id"].encode()


def test_attached_nics_appear_as_the_next_ethn_up_and_detach_takes_them(sim: Sim) -> None:
    nics = sim.new_nics("host1", "vxnet-pods001", count=5)
    found = links(sim.netns())
    new = [found[nic["nic_id"]] for nic in nics]
    assert [link["ifname"] for link in new] == [f"eth{n}" for n in range(1, 6)]
    assert all("UP" in link["flags"] and link["mtu"] == 1500 for link in new)
    sim.remove_nics(nics[1]["nic_id"])
    (again,) = sim.new_nics("host1", "vxnet-pods002")
    assert links(sim.netns())[again["nic_id"]]["ifname"] == "eth2"
    rest = [nic["nic_id"] for nic in (nics[0], *nics[2:], again)]
    sim.remove_nics(*rest)
    assert not set(rest) & set(links(sim.netns()))
    assert links(sim.netns())[sim.host()["nic_id"]]["ifname"] == "eth0"


def test_containers_reach_each_other_within_and_between_vxnets(sim: Sim) -> None:
    (first,) = sim.new_nics("host1", "vxnet-pods001")
    (second,) = sim.new_nics("host2", "vxnet-pods001")
    (third,) = sim.new_nics("host2", "vxnet-pods002")
    with new_namespace() as one, new_namespace() as two, new_namespace() as three:
        move_in(sim.netns("host1"), one, first, "172.20.1.1")
        move_in(sim.netns("host2"), two, second, "172.20.1.1")
        move_in(sim.netns("host2"), three, third, "172.20.2.1")
        assert ping(one, second["private_ip"])
        assert ping(one, third["private_ip"])
        assert ping(three, first["private_ip"])
        assert ping(one, sim.host("host2")["address"])
    sim.remove_nics(*(nic["nic_id"] for nic in (first, second, third)))


def test_a_nic_returns_down_as_dev_ifindex_when_its_namespace_dies(sim: Sim) -> None:
    (nic,) = sim.new_nics("host1", "vxnet-pods003")
    with new_namespace() as pod:
        move_in(sim.netns(), pod, nic, "172.20.3.1")
        assert nic["nic_id"] not in links(sim.netns())
    link = eventually(lambda: links(sim.netns()).get(nic["nic_id"]), "the NIC back on its host")
    assert link["ifname"] == f"dev{link['ifindex']}"
    assert "UP" not in link["flags"]
    with new_namespace() as pod:  # and it works as before
        move_in(sim.netns(), pod, nic, "172.20.3.1")
        assert ping(pod, "172.20.3.1")
        sim.remove_nics(nic["nic_id"])
        assert nic["nic_id"] not in links(pod), "detached from inside a container it vanishes there"
    assert nic["nic_id"] not in links(sim.netns())
    assert nic["nic_id"] not in {known["nic_id"] for known in sim.status()["nics"]}


def test_a_link_with_an_odd_name_has_it_again_when_it_comes_back() -> None:
    with running_sim("--hosts", "1") as sim:
        odd = '[{"action": "AttachNics", "effect": "odd-name", "name": "wlan"}]'
        run(QINGCLOUD_SIM, "faults", "set", "-", "--name", sim.name, input=odd)
        (nic,) = sim.new_nics("host1", "vxnet-pods001")
        first = links(sim.netns())[nic["nic_id"]]
        with new_namespace() as pod:
            move_in(sim.netns(), pod, nic, "172.20.1.1")
        back = eventually(lambda: links(sim.netns()).get(nic["nic_id"]), "the NIC back on its host")
        assert (first["ifname"], back["ifname"]) == ("wlan0", "wlan0")
        assert ("UP" in first["flags"], "UP" in back["flags"]) == (True, False)


def test_a_nic_detached_while_it_returns_does_not_come_back() -> None:
    with running_sim("--replug-latency", "1s") as sim:
        (gone, kept) = sim.new_nics("host1", "vxnet-pods001", count=2)
        with new_namespace() as pod:
            move_in(sim.netns(), pod, gone, "172.20.1.1")
            name = links(sim.netns())[kept["nic_id"]]["ifname"]
            run("ip", "-n", sim.netns(), "link", "set", name, "netns", pod)

        def state(nic_id: str) -> str:
            return next((str(nic["link"]) for nic in sim.status()["nics"] if nic["nic_id"] == nic_id), GONE)

        eventually(lambda: state(gone["nic_id"]) == "returning", "the NIC's death noticed")
        sim.remove_nics(gone["nic_id"])
        eventually(lambda: links(sim.netns()).get(kept["nic_id"]), "the other NIC back on its host")
        assert gone["nic_id"] not in links(sim.netns())
        assert state(gone["nic_id"]) == GONE


def test_the_api_listens_at_the_same_address_in_every_host(sim: Sim) -> None:
    import http.client

    port = int(sim.info["endpoint"].split(":")[2].split("/")[0])

    def ask() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.connect()  # in this thread's namespace; the rest is not bound to it
        connection.request("GET", "/iaas/?action=DescribeNics")
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return int(answer["ret_code"])

    assert [inside(sim.netns(host), ask) for host in ("host1", "host2")] == [1100, 1100]
    with pytest.raises(ConnectionRefusedError):
        inside(Path(sim.info["namespaces"]["router"]).name, ask)


def test_host_settings_are_the_kernels_own_and_bridge_ports_have_macs_of_their_own(sim: Sim) -> None:
    def read(name: str) -> str:
        return Path("/proc/sys/net/ipv4", name).read_text().strip()

    names = ("ip_forward", "conf/eth0/rp_filter", "conf/all/rp_filter", "conf/eth0/arp_ignore")
    assert inside(sim.netns(), lambda: [read(name) for name in names]) == ["0", "0", "0", "0"]
    router = Path(sim.info["namespaces"]["router"]).name
    assert inside(router, lambda: read("ip_forward")) == "1"
    nic_ids = {nic["nic_id"] for nic in sim.status()["nics"]}
    ports = [link for link in links(router).values() if link["ifname"].startswith("p")]
    assert len(ports) == len(nic_ids)
    assert not {port["address"] for port in ports} & nic_ids


def test_two_simulators_with_different_names_coexist(sim: Sim) -> None:
    with running_sim("--hosts", "1") as other:
        assert other.host()["instance_id"] != sim.host()["instance_id"]
        assert ping(other.netns(), "172.20.0.1")
        assert ping(sim.netns(), sim.host("host2")["address"])
    assert ping(sim.netns(), sim.host("host2")["address"])


@pytest.mark.parametrize("is_record_lost", [False, True])
def test_down_after_kill_9_leaves_nothing_and_takes_only_its_own(sim: Sim, is_record_lost: bool) -> None:
    name = unique_name()
    with running_sim(name=name) as doomed, new_namespace() as pod:
        (nic,) = doomed.new_nics("host1", "vxnet-pods001")
        move_in(doomed.netns(), pod, nic, "172.20.1.1")
        parking = f"qingcni-{doomed.host()['instance_id']}"
        run("ip", "netns", "add", parking)
        doomed.process.kill()
        doomed.process.wait()
        state_dir = Path(doomed.info["state_dir"])
        refused = run(QINGCLOUD_SIM, "up", "--name", name, check=False)
        assert refused.returncode == 3, refused.stderr
        assert f"qingcloud-sim down --name {name}" in refused.stderr
        if is_record_lost:
            (state_dir / "record.json").unlink()
        run(QINGCLOUD_SIM, "down", "--name", name)
        left = [path.name for path in Path("/run/netns").iterdir()]
        assert not [entry for entry in left if entry.startswith(f"{name}-") or entry == parking]
        assert nic["nic_id"] not in links(pod)
        assert not state_dir.exists()
        assert "nothing" in run(QINGCLOUD_SIM, "down", "--name", name).stdout
    assert ping(sim.netns(), sim.host("host2")["address"])


def test_tests_take_down_a_simulator_that_they_killed_wherever_its_state_is(tmp_path: Path) -> None:
    with running_sim("--hosts", "1", "--state-dir", str(tmp_path / "s")) as sim:
        sim.process.kill()
        sim.process.wait()
        assert Path(sim.host()["netns"]).exists()
    assert not list(Path("/run/netns").glob(f"{sim.name}-*"))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_takes_everything_down(number: signal.Signals) -> None:
    with running_sim() as sim, new_namespace() as pod:
        (nic,) = sim.new_nics("host1", "vxnet-pods001")
        move_in(sim.netns(), pod, nic, "172.20.1.1")
        sim.process.send_signal(number)
        assert sim.process.wait(timeout=30) == 0
        assert nic["nic_id"] not in links(pod)
        assert not Path(sim.host()["netns"]).exists()
        assert not Path(sim.info["state_dir"]).exists()


def test_a_signal_before_it_is_ready_leaves_nothing() -> None:
    name = unique_name()
    process = subprocess.Popen((QINGCLOUD_SIM, "up", "--name", name, "--hosts", "30"), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: Path(f"/run/netns/{name}-host1").exists(), "the first namespace")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
        assert not [path for path in Path("/run/netns").iterdir() if path.name.startswith(f"{name}-")]
        assert not Path(f"/run/qingcloud-sim/{name}").exists()
    finally:
        process.kill()
        process.wait()
        run(QINGCLOUD_SIM, "down", "--name", name, check=False)


def test_vpcs_stay_apart_and_may_use_the_same_networks(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text("""
routers:
  - {router_id: rtr-one, vpc_network: 10.1.0.0/16}
  - {router_id: rtr-two, vpc_network: 10.1.0.0/16}
vxnets:
  - {vxnet_id: vxnet-one, network: 10.1.0.0/24, router_id: rtr-one}
  - {vxnet_id: vxnet-two, network: 10.1.0.0/24, router_id: rtr-two, manager_ip: 10.1.0.254}
hosts:
  - {name: a, vxnet_id: vxnet-one}
  - {name: b, vxnet_id: vxnet-one}
  - {name: c, vxnet_id: vxnet-two}
""")
    with running_sim("--topology", str(file)) as sim:
        assert len(sim.info["namespaces"]["routers"]) == 2
        assert ping(sim.netns("a"), sim.host("b")["address"])
        assert not ping(sim.netns("a"), "10.1.0.254")
        assert ping(sim.netns("c"), "10.1.0.254")


def test_a_deleted_host_does_not_keep_the_cloud_from_serving_the_others() -> None:
    with running_sim() as sim:
        run("ip", "netns", "delete", sim.netns("host1"))
        sim.new_nics("host1", "vxnet-pods001")
        (nic,) = sim.new_nics("host2", "vxnet-pods001")
        assert nic["nic_id"] in links(sim.netns("host2"))
