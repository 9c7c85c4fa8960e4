"""The end of a run: the counts of cloud, table and kernel agree, and everything can be removed."""

import json
import time
from collections.abc import Callable, Iterator

from chaos.environment import Environment
from chaos.promises import Promises
from chaos.record import Record
from chaos.runtimes import Runtime
from chaos.watcher import check, held_macs, is_answered
from machines.hosts import Host
from machines.simulator import run

AGREE_SECONDS = 240.0  # doubts need two looks, links 30 s to come home, calls their backing off
LOOK = 1.0  # seconds between looks at all the accounts
ASK = 10.0  # seconds between requests to compare
LOOPBACK = "00:00:00:00:00:00"
AT_REST = {"idle", "assigned", "quarantined"}


class FinalCheck:
    def __init__(self, environment: Environment, promises: Promises, record: Record, runtimes: list[Runtime]) -> None:
        self._environment = environment
        self._promises = promises
        self._record = record
        self._runtimes = runtimes

    def settle(self) -> None:
        """End the faults; check that living containers have what they were promised, then delete all."""
        environment, record = self._environment, self._record
        environment.sim.set_faults()
        record.tell(f"no more trouble; {len(self._promises.promises())} containers live")
        self._agree("the counts agree", self._differences)
        for promise in self._promises.promises():
            check(promise, self._promises, record)
            if not is_answered(promise, promise.gateway):
                record.fail(f"{promise.name} does not reach {promise.gateway}", promise.name, promise.nic_id)
        for host in environment.hosts:
            runtime = next(r for r in self._runtimes if r.host is host)
            runtime.finish([c for h, c in self._promises.containers() if h is host])
        self._agree("all containers are gone and the counts agree", self._differences)
        self._remove_all()

    def _remove_all(self) -> None:
        """Drain the hosts, stop the agents and clean up."""
        for host in self._environment.hosts:
            if self._record.over.is_set():
                return
            host.qingagent("drain")
            self._environment.stop_agent(host)
            host.cleanup(loglevel="error")
        left = [*self._left()]
        if left:
            self._record.fail(f"left behind: {', '.join(left)}", *left)
        self._record.tell("all hosts drained, nothing left behind")

    def _left(self) -> Iterator[str]:
        yield from (nic["nic_id"] for nic in self._environment.sim.status()["nics"] if nic["role"] == 0)
        names = run("ip", "netns", "list").stdout.split()
        for host in self._environment.hosts:
            yield from (name for name in names if name == host.parking.name or name.startswith(f"{host.sim.name}-c"))
            own = {host.sim.host(host.name)["nic_id"], LOOPBACK}
            yield from (mac for mac in held_macs(host.netns) if mac not in own)
            yield from run(*host.command("nft", "list", "tables")).stdout.splitlines()
            yield from (path.name for path in host.spool.glob("*"))

    def _agree(self, claim: str, differences: Callable[[Host], list[str]]) -> None:
        """Wait until no difference is left; the agents reconcile now and then."""
        begun = asked = self._record.now - ASK
        while not self._record.over.is_set():
            found = {host.name: differences(host) for host in self._environment.hosts}
            if not any(found.values()):
                self._record.tell(f"{claim}, after {self._record.now - begun - ASK:.0f} s: {self._sums()}")
                return
            if self._record.now - begun > AGREE_SECONDS:
                text = "; ".join(f"{name}: {what}" for name, all_of in found.items() for what in all_of)
                subjects = {word.strip(",:;") for word in text.split()}
                known = {c.name for _, c in self._promises.containers()}
                nics = {word for word in subjects if word.count(":") == 5}
                self._record.fail(f"not so in {AGREE_SECONDS:.0f} s: {claim}: {text}", *(subjects & known | nics))
            if self._record.now - asked >= ASK:
                asked = self._record.now
                for host in filter(Host.is_ready, self._environment.hosts):
                    host.ask("POST", "/v1/reconcile")
            time.sleep(LOOK)

    def _sums(self) -> str:
        return ", ".join(
            f"{host.name} {len(host.cloud_nics())} NICs for {len(host.attachments())} containers"
            for host in self._environment.hosts
        )

    # --- cloud = table = kernel ----------------------------------------------------------------------

    def _differences(self, host: Host) -> list[str]:
        """The differences between cloud, table and kernel."""
        self._environment.check_agents()
        shown = host.qingagent("nics", "-o", "json", check=False)
        if shown.returncode or not host.is_ready():
            return [f"the agent is not ready: {shown.stderr}"]
        cloud = host.cloud_nics()
        table = {nic["nic_id"]: nic for nic in json.loads(shown.stdout)}
        served = {row["container_id"]: row["nic_id"] for row in host.attachments()}
        living = {p.name: p.nic_id for p in self._promises.promises() if p.host is host}
        kernel = self._kernel(host, cloud.keys() | table.keys())
        found = [f"{nic_id} is in the cloud only" for nic_id in cloud.keys() - table.keys()]
        found += [f"{nic_id} is in the table only" for nic_id in table.keys() - cloud.keys()]
        found += [f"{name} is no more and has {nic_id}" for name, nic_id in served.items() if name not in living]
        found += [f"{name} lives and is not served" for name in living.keys() - served.keys()]
        for nic_id in cloud.keys() & table.keys():
            nic, namespaces = table[nic_id], kernel[nic_id]
            home = [nic["attachment"].split("/")[1]] if nic["attachment"] else [host.parking.name]
            if namespaces != home:
                found.append(f"{nic_id} is in {namespaces} instead of {home}")
            if nic["state"] not in AT_REST:
                found.append(f"{nic_id} is {nic['state']}")
            if cloud[nic_id]["instance_id"] != host.instance_id:
                found.append(f"{nic_id} is attached to {cloud[nic_id]['instance_id'] or 'nothing'}")
        status = host.status()
        found += [f"the agent sees {row['kind']}: {row['nic_id']}" for row in status["differences"]]
        found += [f"under way: {operation}" for operation in status["operations"]]
        # A plugin that was killed while it wrote leaves a draft, which the agent removes after DRAFT_AGE.
        return found + [f"spooled for the agent: {path.name}" for path in host.spool.glob("*.json")]

    def _kernel(self, host: Host, nic_ids: set[str]) -> dict[str, list[str]]:
        """The namespaces of their links, among all namespaces."""
        names = [line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines()]
        ours = [name for name in names if name == host.parking.name or name.startswith(f"{host.sim.name}-")]
        namespaces: dict[str, list[str]] = {nic_id: [] for nic_id in nic_ids}
        for name in ours:
            for mac in held_macs(name):
                if mac in namespaces:
                    namespaces[mac].append(name)
        return namespaces
