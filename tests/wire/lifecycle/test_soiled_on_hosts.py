"""What a container did to its NIC, as an operator meets it: explain, CHECK, quarantine, the next container."""

import json
from typing import Any

from machines.hosts import NewHost
from machines.simulator import eventually, needs_root, run

pytestmark = needs_root
HOSTS = 3

ONE: dict[str, Any] = {"min_idle": 1, "max_idle": 1, "max_nics": 2, "cooldown": "0s"}


def test_container_that_follows_one_without_arp_has_its_network(new_host: NewHost) -> None:
    host = new_host()
    host.start(**ONE | {"max_nics": 1})
    first, second = host.container(), host.container()
    conf = host.conf() | {"cniVersion": "1.0.0"}
    added = host.cni("ADD", first, conf=conf)
    nic_id = added.result["interfaces"][0]["mac"]
    assert "not as the cloud" not in host.qingagent("explain", first.name).stdout
    run("ip", "-n", first.name, "link", "set", "eth0", "arp", "off", "mtu", "1300")
    run("ip", "-n", first.name, "link", "add", "link", "eth0", "name", "over", "type", "macvlan")

    told = host.qingagent("explain", first.name).stdout
    for what in ("flags NOARP, MULTICAST instead of MULTICAST", "mtu 1300 instead of 1500", "macvlan over above it"):
        assert f"not as the cloud plugged it in: {what}" in told
    (story,) = json.loads(host.qingagent("explain", first.name, "-o", "json").stdout)
    assert len(story["differences"]) == 3
    check = host.cni("CHECK", first, conf=conf | {"prevResult": added.result})
    assert "interface eth0 does not use ARP (NOARP)" in check.json["msg"]

    host.delete(first)
    eventually(lambda: [nic["nic_id"] for nic in host.nics("idle")] == [nic_id], "the NIC idle again")
    host.cni("ADD", second)
    link = second.link()
    assert (link["address"], link["mtu"], "NOARP" in link["flags"]) == (nic_id, 1500, False)
    assert "not as the cloud" not in host.qingagent("explain", second.name).stdout
    assert host.status()["lacks"] == []


def test_operator_takes_a_nic_out_of_use(new_host: NewHost) -> None:
    host = new_host()
    host.start(**ONE)
    (idle,) = host.nics("idle")
    said = host.qingagent("quarantine", idle["nic_id"].upper()).stdout
    assert said == f"nic {idle['nic_id']}: out of use; the agent detaches and deletes it now\n"
    eventually(lambda: idle["nic_id"] not in host.cloud_nics() and len(host.nics("idle")) == 1, "it is replaced")

    container = host.container()
    nic_id = host.cni("ADD", container).result["interfaces"][0]["mac"]
    said = host.qingagent("quarantine", nic_id).stdout
    assert said.endswith(f"deletes it once mynet/{container.name}/eth0 releases it\n")
    assert "out of use: an operator took it out of use" in host.qingagent("nics").stdout
    assert container.link()["address"] == nic_id
    host.delete(container)
    eventually(lambda: nic_id not in host.cloud_nics(), "it is deleted")

    answer = host.qingagent("quarantine", "52:54:00:00:00:01", check=False)
    assert answer.returncode == 1
    assert "the agent has no such NIC; see qingagent nics" in answer.stderr
