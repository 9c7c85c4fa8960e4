"""The steps of the demo in order; each raises Failed if its claim does not hold."""

import json
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from itertools import permutations, product
from pathlib import Path

from demo_environment import QINGAGENT, QINGCLOUD_SIM, SERVICE_RANGE, Host, Word
from demo_service import service_rules
from demo_tools import Process, Tools, expect

VXNETS = {"host1": "vxnet-pods001", "host2": "vxnet-pods002"}
HOMES = {"a1": "host1", "a2": "host1", "a3": "host1", "b1": "host2", "b2": "host2", "b3": "host2"}
WARM = 3  # idle NICs of each host
# Shorter than the defaults (130 s, 30 s, 10 min), which suit a cluster and not a demo.
POOL: dict[str, str | int] = {
    "min-idle": WARM, "max-idle": WARM, "cooldown": "6s", "cooldown-min": "3s", "idle-ttl": "5s",
}  # fmt: skip
LIMITS: dict[str, dict[str, str | int]] = {"host1": {"max-nics": WARM + 1}, "host2": {}}  # host1 must recycle
GATEWAY = "hostnic"  # the default of --gatewayns
SERVICE = "10.96.0.10"
ASKED = 16  # requests: one of two backends gets none once in 30,000 runs
END_SECONDS = 10.0  # from a program's last output to its end


@dataclass
class Steps(Tools):
    agents: dict[str, Process] = field(default_factory=dict)
    simulator: Process | None = None

    def bring_up_cloud(self) -> None:
        environment = self.environment
        words: list[Word] = [QINGCLOUD_SIM, "up", "--name", environment.name, "--state-dir", environment.sim]
        words += ["--attach-latency", "2s..4s"]
        self.tell.command(words, {})
        self.simulator = environment.start(*words, output=environment.sim_ready, log=environment.sim_log)
        self.wait(
            lambda: (environment.sim_ready.read_text().endswith("\n"), "making hosts, vxnets and a router"),
            "a simulator that is ready", self.simulator, environment.sim_log,
        )  # fmt: skip
        info = json.loads(environment.sim_ready.read_text())
        gateways = {vxnet["vxnet_id"]: vxnet["manager_ip"] for vxnet in info["vxnets"]}
        for name, found in info["namespaces"]["hosts"].items():
            vxnet_id, directory = VXNETS[name], environment.directory / name
            self.hosts[name] = Host(
                name, found["netns"], vxnet_id, gateways[vxnet_id], directory, found["simulator_netns"]
            )
            self.tell.say(f"{name}: instance {found['instance_id']}, {found['address']}, namespace {found['netns']}")
        self.tell.say(f"On each host the cloud's API is at {info['endpoint']}; an attach takes 2 to 4 s.")

    def install_plugin(self) -> None:
        self.shell(QINGAGENT, "install-plugin", "--bin-dir", self.environment.bin_dir)
        said = self.shell(self.environment.plugin, settings={"CNI_COMMAND": "VERSION"})
        expect("0.3.1" in json.loads(said)["supportedVersions"], "a plugin with CNI 0.3.1", said)

    def start_agents(self) -> None:
        for host in self.hosts.values():
            host.write_files(self.environment.sim / host.name, POOL | LIMITS[host.name])
        first = self.hosts["host1"]
        for path, what in ((first.config, "the agent's settings"), (first.network, "for the container runtime")):
            self.tell.say(f"{path}, {what}:")
            self.tell.show(path.read_text())
        for host in self.hosts.values():
            words = host.inside(QINGAGENT, "start", "--config", host.config)
            self.tell.command(words, {})
            self.agents[host.name] = self.environment.start(*words, output=host.log, log=subprocess.STDOUT)
        for host in self.hosts.values():
            self.wait_for_agent(host, self.agents[host.name])

    def warm_up(self) -> None:
        self.wait_for_nics({name: {"idle": WARM} for name in self.hosts})
        for host in self.hosts.values():
            self.shell(QINGAGENT, "nics", "--config", host.config)

    def add_containers(self) -> None:
        self.tell.say(f"The network's route to {SERVICE_RANGE} needs a gateway on the host (0.0.0.0), which has none")
        self.tell.say("in that vxnet; so the first ADD on each host waits until the agent has made one.")
        for container, home in HOMES.items():
            self.make_container(container)
            if container in ("a1", "b1"):
                self.tell.waiting(f"{container} waits for the gateway of {home}")
            self.add(container, self.hosts[home], is_shown=container == "a1")
        nic_ids = [self.nic_of(container) for container in HOMES]
        expect(len(set(nic_ids)) == len(HOMES), "a NIC of its own for each container", f"they got {nic_ids}")

    def inspect_container(self) -> None:
        netns, host = self.environment.netns_of("a1").name, self.hosts["host1"]
        self.shell("ip", "-n", netns, "addr", "show", "dev", "eth0")
        (link,) = json.loads(self.quietly("ip", "-n", netns, "-j", "-4", "addr", "show", "dev", "eth0"))
        addresses = [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"]]
        expect(addresses == [self.address_of("a1")], f"the address {self.address_of('a1')}", f"{addresses}")
        (link,) = json.loads(self.quietly("ip", "-n", netns, "-j", "link", "show", "dev", "eth0"))
        expect(link["address"] == self.nic_of("a1"), f"the MAC {self.nic_of('a1')}", link["address"])
        routes = self.shell("ip", "-n", netns, "route")
        for wanted in (f"default via {host.gateway} ", f"{SERVICE_RANGE} via {self.service_gateway_of('a1')} "):
            expect(wanted in routes, f"the route {wanted}", f"there are\n{routes}")
        links = self.shell("ip", "-n", Path(host.netns).name, "-brief", "link")
        expect(not any(nic_id in links for nic_id in self.nic_ids), "no container's NIC on the host", links)
        self.tell.say(
            f"The MAC of a1's eth0 is the NIC's id, {self.nic_of('a1')}; the host has its own eth0, and {GATEWAY}."
        )

    def talk(self) -> None:
        for source, target, where in (
            ("a1", "a2", "the same host and vxnet"),
            ("a1", "b1", "another host and another vxnet"),
            ("b2", "a3", "and back"),
        ):
            self.tell.say(f"{source} to {target}, {where}:")
            self.ping(source, target)
            self.connect(source, target)
        pairs = list(permutations(HOMES, 2))
        for source, target in pairs:
            self.quietly(*self.environment.inside(source, "ping", "-q", "-c", "1", "-W", "2", self.ip_of(target)))
        self.tell.say(f"A ping from each container to each other one: {len(pairs)} of {len(pairs)} are answered.")

    def reach_service(self) -> None:
        backends = {"a2": self.ip_of("a2"), "b2": self.ip_of("b2")}
        rules = self.environment.directory / "service.nft"
        rules.write_text(service_rules(SERVICE, backends))
        self.tell.say(f"The Service {SERVICE}, port 80, has a2 on host1 and b2 on host2 behind it. On each host:")
        for host in self.hosts.values():
            self.shell(*host.inside("nft", "-f", rules))
        self.tell.show(rules.read_text())
        with self.answering(*backends):
            for source, proto in product(("a1", "b1"), ("tcp", "udp")):
                answers = Counter(self.ask_service(source, SERVICE, proto, ASKED))
                gateway = self.service_gateway_of(source)
                wanted = {f"{name} {gateway}" for name in backends}
                expect(set(answers) == wanted, f"answers of both, to {gateway}", f"they were {dict(answers)}")
                counts = ", ".join(f"{name} {answers[f'{name} {gateway}']} times" for name in backends)
                self.tell.say(f"{source} asks {ASKED} times by {proto.upper()}: {counts}, all seen from {gateway}")
        host = self.hosts["host1"]
        self.shell("ip", "-n", Path(host.netns).name, "-brief", "-4", "addr")
        self.shell(QINGAGENT, "nics", "--config", host.config)
        nics = {nic["nic_id"]: nic for nic in self.cloud_status()["nics"]}
        unguarded = {nic_id for nic_id, nic in nics.items() if not nic["enable_aspoof"]}
        held = {
            nic["nic_id"] for h in self.hosts.values() for nic in self.ask("nics", h) if nic["state"] == "gateway"
        }
        expect(unguarded == held, f"anti-spoofing off on {held} alone", f"it is off on {unguarded}")
        self.tell.say(
            f"{GATEWAY} is a NIC of the agent's, with a routing table of its own; the host's routes are as they were."
        )
        self.tell.say("In the cloud, anti-spoofing is off on the two gateways and on nothing else.")

    def add_again(self) -> None:
        before = self.results["a1"]
        self.add("a1", self.hosts["host1"], is_shown=True)
        expect(self.results["a1"] == before, f"the first answer, {before}", f"{self.results['a1']}")

    def recycle(self) -> None:
        others: dict[str, int] = {"assigned": WARM, "gateway": 1}
        self.wait_for_nics({"host1": others, "host2": {"idle": WARM} | others})
        host, nic_id, calls = self.hosts["host1"], self.nic_of("a1"), self.count_calls()
        self.delete("a1", host, is_shown=True)
        self.end_container("a1")
        self.tell.say("A repeated DEL, as of runtimes, must succeed:")
        self.delete("a1", host)
        self.shell(QINGAGENT, "nics", "--config", host.config)
        self.tell.say(
            f"host1 may hold {WARM + 1} NICs with its gateway: the next container waits for the cooling one."
        )
        self.make_container("a4")
        self.tell.waiting("a4 waits for its NIC")
        self.add("a4", host)
        expect(self.nic_of("a4") == nic_id, f"a1's NIC, {nic_id}", self.nic_of("a4"), host.log)
        after = self.count_calls()
        expect(after == calls, f"no call of the cloud, still {calls}", f"{after}", host.log)
        self.tell.say("The same NIC again, and no call to the cloud: a key has about 2,000 calls an hour.")

    def release_unused(self) -> None:
        host = self.hosts["host2"]
        for container in ("b1", "b2", "b3"):
            self.delete(container, host)
            self.end_container(container)
        self.shell(QINGAGENT, "nics", "--config", host.config)
        self.tell.say(
            f"After the cooldown {2 * WARM} are idle, and max-idle is {WARM}: the agent releases the longest idle."
        )
        self.wait_for_nics({"host2": {"idle": WARM, "gateway": 1}})
        self.shell(QINGAGENT, "nics", "--config", host.config)
        held = {nic["nic_id"] for nic in self.ask("nics", host)}
        in_cloud = {nic["nic_id"] for nic in self.cloud_status()["nics"] if nic["vxnet_id"] == host.vxnet_id}
        expect(held == in_cloud, f"in the cloud just {held}", f"{in_cloud}", host.log)

    def drain(self) -> None:
        for container in ("a2", "a3", "a4"):
            self.delete(container, self.hosts["host1"])
            self.end_container(container)
        drains: list[tuple[Host, Path, Process]] = []
        for host in self.hosts.values():
            words: list[Word] = [QINGAGENT, "drain", "--config", host.config]
            self.tell.command(words, {})
            output = host.directory / "drain.out"
            drains.append((host, output, self.environment.start(*words, output=output, log=subprocess.STDOUT)))
        for host, output, process in drains:
            self._wait_for_end(process, f"the cloud detaches and deletes the NICs of {host.name}")
            self.tell.say(f"The command on {host.name} prints:")
            self.tell.show(output.read_text())
            expect(process.returncode == 0 and not self.ask("nics", host), f"no NIC on {host.name}", "some", host.log)
        left = [nic["nic_id"] for nic in self.cloud_status()["nics"] if nic["role"] == 0]
        expect(not left, "in the cloud no NIC but the hosts' own", f"{left}", self.environment.sim_log)
        for host in self.hosts.values():
            links = self.quietly("ip", "-n", Path(host.netns).name, "-brief", "link")
            tables = self.quietly(*host.inside("nft", "list", "tables"))
            expect(GATEWAY not in links and "qingcni" not in tables, "no gateway left", links + tables, host.log)
        self.tell.say("The cloud has only the hosts' own NICs; the gateways and their rules are gone as well.")

    def stop_agents(self) -> None:
        for host in self.hosts.values():
            self.shell(QINGAGENT, "stop", "--config", host.config)
            status = self.agents[host.name].wait(END_SECONDS)
            expect(status == 0, f"status 0 of the agent on {host.name}", f"{status}", host.log)
            self.shell(*host.inside(QINGAGENT, "cleanup", "--config", host.config))
        parking = [netns for netns in self.environment.namespaces() if netns.startswith("qingcni-")]
        expect(not parking, "no parking namespace", f"{parking}")

    def stop_simulator(self) -> None:
        environment = self.environment
        self.shell(QINGCLOUD_SIM, "down", "--name", environment.name, "--state-dir", environment.sim)
        if self.simulator is not None:
            status = self.simulator.wait(END_SECONDS)
            expect(status == 0, "status 0 of the simulator", f"{status}", environment.sim_log)
        left = [thing for thing in environment.left(self.nic_ids) if thing != f"directory {environment.directory}"]
        expect(not left, "nothing left", ", ".join(left), environment.sim_log)
        left = environment.remove_all()  # now that is its directory
        expect(not left, "nothing left", ", ".join(left))
        self.tell.say(f"No process, namespace, link or file of {environment.name} is left on this machine.")

    def _wait_for_end(self, process: Process, what: str) -> None:
        self.wait(lambda: (process.poll() is not None, what), what)
