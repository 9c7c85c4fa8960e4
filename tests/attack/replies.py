"""C: replies of the cloud that are wrong, or not what they seem."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from attack.lying_cloud import Lie, LyingCloud, Reply, lying_cloud
from attack.registry import case
from attack.scene import Scene, assert_lives, assert_reaches_gateway, assert_works, unchanged
from machines.hosts import Host
from machines.simulator import eventually

FEW = {"min_idle": 1, "max_idle": 1, "max_nics": 2, "duplicate_probe": "false"}
ESC = "\x1b]0;owned\x07"


@contextmanager
def lied_to(scene: Scene, lie: Lie) -> Iterator[tuple[Host, LyingCloud]]:
    """A host whose agent hears nothing but lies from its start on; afterwards the truth, and it works."""
    host = scene.bare_host()
    with lying_cloud(host) as cloud, unchanged(host):
        cloud.lie = lie
        host.launch(QYAccessFilePath=cloud.access_file, **FEW)
        eventually(lambda: cloud.told, "a lie that is told")
        yield host, cloud
        assert_lives(host)
        cloud.lie = None
        host.ask("POST", "/v1/reconcile")
        eventually(lambda: host.is_ready(host.agent), "a ready agent", seconds=60)
        assert_works(host)


def assert_hears(host: Host, cloud: LyingCloud, times: int = 3) -> None:
    """The agent hears some more lies, and lives."""
    told = cloud.told
    host.ask("POST", "/v1/reconcile")
    eventually(
        lambda: cloud.told >= told + times,
        "more lies",
        seconds=60,
    )
    assert_lives(host)


@case("C", is_short=True)
def own_nic_as_created(scene: Scene) -> None:
    """CreateNics is answered with the MAC of the host's own eth0. The agent leaves eth0 alone."""
    host = scene.bare_host()
    own = host.sim.host(host.name)["nic_id"]

    def lie(action: str, reply: Reply) -> Reply:
        if action == "CreateNics" and reply["ret_code"] == 0:
            reply["nics"][0]["nic_id"] = own
        return reply

    with lying_cloud(host) as cloud, unchanged(host):
        cloud.lie = lie
        host.launch(QYAccessFilePath=cloud.access_file, **FEW)
        eventually(lambda: cloud.told, "a lie that is told")
        eventually(lambda: host.ask("GET", "/healthz").status == 200, "an agent that serves")
        assert_lives(host)
        cloud.lie = None
        container = host.container()
        host.add(container)
        assert container.link()["address"] != own, "the container has the NIC of the host"


@case("C")
def own_nic_as_ours(scene: Scene) -> None:
    """DescribeNics lists the host's own eth0 as one of the agent's. The agent leaves eth0 alone."""
    host = scene.bare_host()
    own = host.sim.host(host.name)["nic_id"]

    def lie(action: str, reply: Reply) -> Reply:
        for nic in reply.get("nic_set", ()) if action == "DescribeNics" else ():
            if nic["nic_id"] == own:
                nic |= {"nic_name": f"qingcni_{host.instance_id}_0123456789abcdef", "role": 0}
        return reply

    with lying_cloud(host) as cloud, unchanged(host):
        cloud.lie = lie
        host.start(idle=1, QYAccessFilePath=cloud.access_file, **FEW)
        assert_works(host)
        assert_hears(host, cloud, 1)


@case("C", is_short=True)
def instance_of_another_host(scene: Scene) -> None:
    """An agent is given the instance id of another host. It plugs no NIC into that host."""
    host, other = scene.bare_host(), scene.bare_host()
    given = other.sim.host(other.name)["instance_id_file"]
    agent = host.launch(instance_id_file=given, **FEW)
    assert agent.wait() == 2
    assert other.instance_id in agent.stderr
    assert attached_to(other) == [other.sim.host(other.name)["nic_id"]]


def attached_to(host: Host) -> list[str]:
    """NICs that a host has, and others that the cloud has for its agent."""
    nics = host.sim.call("DescribeNics", instances=[host.instance_id])["nic_set"]
    return [nic["nic_id"] for nic in nics] + list(host.cloud_nics())


def every_field(value: object) -> Lie:
    """Puts *value* into every field of every item, but leaves ids that the simulator needs in the envelope."""

    def lie(_action: str, reply: Reply) -> Reply:
        for key, items in reply.items():
            if key.endswith("_set") or key in {"nics", "job_id"}:
                reply[key] = [dict.fromkeys(item, value) for item in items] if isinstance(items, list) else value
        return reply

    return lie


@case("C")
def fields_of_other_types(scene: Scene) -> None:
    """Every field of every item is a number, a list, nothing or an object. The agent lives, and works afterwards."""
    values: Iterator[object] = iter([1e300, [], None, {}, True, -1, ""])
    current: list[object] = [next(values)]

    def lie(action: str, reply: Reply) -> Reply:
        changed = every_field(current[0])(action, reply)
        current[0] = next(values, current[0])
        return dict(changed)

    with lied_to(scene, lie) as (host, cloud):
        eventually(lambda: cloud.told >= 4, "four lies", seconds=60)
        assert_lives(host)


@case("C", is_short=True)
def garbage_addresses(scene: Scene) -> None:
    """Networks have host bits, gateways lie outside, addresses are IPv6 or words. The agent lives, and says so."""

    def lie(_action: str, reply: Reply) -> Reply:
        for vxnet in reply.get("vxnet_set", ()):
            if vxnet.get("router"):
                vxnet["router"] |= {"ip_network": "172.20.1.7/24", "manager_ip": "8.8.8.8"}
        for nic in (*reply.get("nic_set", ()), *reply.get("nics", ())):
            nic["private_ip"] = "fd00::1" if len(nic["nic_id"]) % 2 else "one"
        return reply

    with lied_to(scene, lie) as (host, _):
        eventually(lambda: "host bits" in str(host.status()), "a status that names the network", seconds=30)


@case("C")
def ids_that_are_none(scene: Scene) -> None:
    """NICs have ids that are not MACs. The agent lives, and works afterwards."""

    def lie(_action: str, reply: Reply) -> Reply:
        for nic in (*reply.get("nic_set", ()), *reply.get("nics", ())):
            nic["nic_id"] = "../../etc/passwd"
        return reply

    with lied_to(scene, lie):
        pass


@case("C")
def endless_texts(scene: Scene) -> None:
    """Messages have a megabyte and escape sequences. The agent shortens them, and no table shows an escape."""

    def lie(action: str, _reply: Reply) -> Reply:
        return {"ret_code": 1400, "message": ESC + "x" * 2**20, "action": f"{action}Response"}

    with lied_to(scene, lie) as (host, _):
        eventually(lambda: host.status()["cloud_error"], "an error that is shown")
        assert len(host.status()["cloud_error"]) < 2000
        assert "\x1b" not in host.qingagent("status").stdout
        assert host.agent.log.stat().st_size < 2**19


def assert_container_stays(scene: Scene, *lies: Callable[[str, Reply], None]) -> None:
    """A container keeps its NIC while the agent hears each of the *lies*, which change a NIC of that id in a list."""
    host = scene.bare_host()
    with lying_cloud(host) as cloud, unchanged(host):
        host.start(idle=1, QYAccessFilePath=cloud.access_file, **FEW)
        container = host.container()
        host.add(container)
        nic_id = str(container.link()["address"])
        for change in lies:
            cloud.lie = in_lists(partial(change, nic_id))
            for _ in range(3):  # two would do for a remedy
                told = cloud.told
                host.ask("POST", "/v1/reconcile")
                assert cloud.told > told
            assert container.link()["address"] == nic_id
            assert_reaches_gateway(container)
            assert nic_id in attached_to(host)
        cloud.lie = None
        host.ask("POST", "/v1/reconcile")
        host.delete(container)
        assert_works(host)


def in_lists(change: Callable[[Reply], None]) -> Lie:
    """Changes replies of DescribeNics."""

    def lie(action: str, reply: Reply) -> Reply:
        if action == "DescribeNics":
            change(reply)
        return reply

    return lie


def said_to_be(reply: Reply, nic_id: str, **changes: object) -> None:
    for nic in reply["nic_set"]:
        if nic["nic_id"] == nic_id:
            nic.update(changes)


@case("C")
def empty_lists(scene: Scene) -> None:
    """Every list of NICs is empty. A container keeps its NIC."""
    assert_container_stays(scene, lambda _nic_id, reply: reply.update(nic_set=[], total_count=0))


@case("C", is_short=True)
def nic_of_a_container_elsewhere(scene: Scene) -> None:
    """A container's NIC is said to be free, then another instance's, then primary. The container keeps it."""
    assert_container_stays(
        scene,
        lambda nic_id, reply: said_to_be(reply, nic_id, instance_id="", status="available"),
        lambda nic_id, reply: said_to_be(reply, nic_id, instance_id="i-another0"),
        lambda nic_id, reply: said_to_be(reply, nic_id, role=1),
    )


@case("C")
def nic_of_another_host(scene: Scene) -> None:
    """A NIC of another host is listed under a name of ours. It stays where it is."""
    host, other = scene.bare_host(), scene.bare_host()
    (foreign,) = host.sim.new_nics(other.name, "vxnet-pods001")
    nic_id, name = foreign["nic_id"], f"qingcni_{host.instance_id}_0123456789abcdef"
    with lying_cloud(host) as cloud:
        cloud.lie = in_lists(lambda reply: said_to_be(reply, nic_id, nic_name=name))
        host.start(idle=1, QYAccessFilePath=cloud.access_file, **FEW)
        for _ in range(3):
            host.ask("POST", "/v1/reconcile")
        assert nic_id in attached_to(other)
        assert_works(host)


@case("C")
def jobs_that_did_nothing(scene: Scene) -> None:
    """Attach jobs are said to be done, and nothing was attached. No container gets such a NIC."""
    host = scene.bare_host()

    def lie(action: str, reply: Reply) -> Reply:
        if action == "AttachNics":
            return reply | {"job_id": "j-lie00000"}
        if action == "DescribeJobs":
            return reply | {"job_set": [{"job_id": "j-lie00000", "status": "successful"}], "total_count": 1}
        return reply

    with lying_cloud(host) as cloud:
        cloud.lie, cloud.swallowed = lie, frozenset({"AttachNics"})
        host.launch(QYAccessFilePath=cloud.access_file, **FEW)
        eventually(lambda: host.is_ready(host.agent), "a ready agent")
        answer = host.cni("ADD", host.container(), conf=host.conf(TimeoutSeconds=8))
        assert answer.code == 11, answer
        assert_lives(host)
