"""All that may happen in a simulated life, a method for each step; `life_runtime` has some of them."""

import random
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import msgspec

from inprocess.agent import SimulatedHost, netns_of
from inprocess.disk import Disk
from inprocess.network import CODES, RandomFaults
from lives.invariants import Witness
from lives.runtime import Runtime
from lives.scenario import Plan, Step
from qingcloud_cni.core.nics.names import link_alias
from qingcloud_cni.sim.cloud.faults import EFFECTS, WRONG_KEYS
from qingcloud_cni.sim.memory.kernel import NOARP
from qingcloud_cni.sim.memory.machine import HOST_PATH, FakeLink
from qingcloud_cni.sim.topology import Latencies

EVERYTHING = tuple(e for e in EFFECTS if e != WRONG_KEYS)  # which may end a first start


class Steps(Runtime):
    """Adds the machine, its disk, the cloud and operators."""

    def __init__(self, host: SimulatedHost, witness: Witness, plan: Plan) -> None:
        super().__init__(host, witness, plan)
        rng = plan.rng("faults")
        self.rate = rng.choice((0.0, 0.05, 0.2)) if "faults" in plan.conditions else 0.0
        self.faults = RandomFaults(rng, self.rate, EVERYTHING)
        host.model.use(self.faults)
        self._until: list[tuple[float, Callable[[], None]]] = []  # when each fault ends, and how
        self._disguised: set[str] = set()  # containers whose NIC has lost its signs
        self._has_records = True  # of fingerprints; without them the simulator's NICs are known by their MACs

    async def do(self, step: Step) -> None:
        for at, over in tuple(self._until):
            if at <= self.host.clock.now():
                over()
                self._until.remove((at, over))
        on_step: Callable[[random.Random], Coroutine[Any, Any, None] | None] = getattr(self, f"on_{step.kind}")
        if (work := on_step(self.plan.rng(step.number))) is not None:
            await work

    # --- the machine -----------------------------------------------------------------------------------

    async def on_reboot(self, rng: random.Random) -> None:
        await self.kill()
        for name in self.alive():
            self.forget(name)
        self.host.kernel.reboot()
        self.host.clock.reboot()
        await self.host.clock.sleep(rng.uniform(1, 100))

    async def on_set_clock(self, rng: random.Random) -> None:
        """Set the host's and the cloud's clock; farther back, jobs would not end for hours."""
        await self.kill()
        self.host.set_clock(rng.choice((-30.0, 30.0, 7200.0)))

    def on_lose_message(self, rng: random.Random) -> None:
        self.host.kernel.lose_message()

    def on_deafen(self, rng: random.Random) -> None:
        """The kernel reports no changes of links for a while."""
        self.host.kernel.is_silent = True
        self._for(rng.uniform(1, 120), lambda: setattr(self.host.kernel, "is_silent", False))

    def on_hide(self, rng: random.Random) -> None:
        """A survey cannot enter a container for a while."""
        if self.alive():
            path = netns_of(rng.choice(self.alive()))
            self.host.kernel.unseen.add(path)
            self._for(rng.uniform(10, 300), lambda: self.host.kernel.unseen.discard(path))

    def on_dress_up(self, rng: random.Random) -> None:
        """A container renames its link, changes its MAC, or clears its alias."""
        if self.alive():
            name = rng.choice(self.alive())
            self._disguise(name)
            for link in self.host.kernel.devices_in(netns_of(name)):
                match rng.choice(("name", "mac", "alias")):
                    case "name":
                        link.name = f"net{rng.randrange(1000)}"
                    case "mac":
                        link.mac = f"02:00:00:00:00:{rng.randrange(256):02x}"
                    case "alias":
                        link.alias = ""

    def on_soil(self, rng: random.Random) -> None:
        """A container leaves state on its NIC, which the agent can remove or cannot, or a host agent does."""
        paths = [HOST_PATH, *map(netns_of, self.alive())]
        for link in self.host.kernel.devices_in(rng.choice(paths)):
            if link.nic_id and link.mac not in self.others():
                link.soil, link.is_stuck = rng.choice((NOARP, "TCX program 7")), rng.random() < 0.3

    def others(self) -> set[str]:
        """NICs that are not the agent's."""
        return {n.nic_id for n in self.host.model.state.nics.values()} - self.witness.ours_in_cloud()

    def on_carry_off(self, rng: random.Random) -> None:
        """Move a container's link to the host or another container."""
        if len(self.alive()) > 1:
            name, other = rng.sample(self.alive(), 2)
            links = self.host.kernel.links_in(netns_of(name))
            target = rng.choice((HOST_PATH, netns_of(other)))
            if len(links) == 1 and not any(n.name == links[0].name for n in self.host.kernel.links_in(target)):
                self.host.kernel.move(netns_of(name), links[0].name, target)
                self.witness.promised.pop(name, None)

    def on_rip_out(self, rng: random.Random) -> None:
        """Delete a container's link, or a parked one."""
        paths = [self.host.kernel.parking_path, *map(netns_of, self.alive())]
        path = rng.choice(paths)
        if links := self.host.kernel.links_in(path):
            self.host.kernel.delete_link(path, rng.choice(links).name)
            self.witness.promised.pop(path.rpartition("/")[2], None)

    def on_unpark(self, rng: random.Random) -> None:
        """Move a parked link to the host."""
        parking = self.host.kernel.parking_path
        if links := self.host.kernel.links_in(parking):
            self.host.kernel.move(parking, rng.choice(links).name, HOST_PATH)

    def on_double(self, rng: random.Random) -> None:
        """A container makes a link with the MAC of a NIC of ours."""
        nics = sorted(self.host.nics) if self.host.is_running else []
        path = netns_of(rng.choice(self.alive())) if self.alive() else ""
        name = f"copy{rng.randrange(100)}"
        if nics and path and not any(link.name == name for link in self.host.kernel.links_in(path)):
            self.host.kernel.add_link(path, rng.choice(nics), name)
            self._for(rng.uniform(1, 200), lambda: self._drop(path, name))

    def on_spoof(self, rng: random.Random) -> None:
        """A hostile container makes a link that looks like a NIC of ours, also at the index of its own."""
        if not (self.host.is_running and self.host.nics and self.alive()):
            return
        nic_id, path = rng.choice(sorted(self.host.nics)), netns_of(rng.choice(self.alive()))
        victim = self.host.table.attachment_of(nic_id)
        self._make_copy(rng, path, nic_id, victim.ifindex if victim else 0)

    def on_swap(self, rng: random.Random) -> None:
        """A hostile container moves its NIC into a nested namespace, and puts a copy in its place."""
        names = [name for name in self.alive() if len(self._nics_in(netns_of(name))) == 1]
        if names:
            name = rng.choice(names)
            (link,) = self._nics_in(netns_of(name))
            index, inner = link.ifindex, netns_of(f"{name}-inner{rng.randrange(1000)}")
            if inner not in self.host.paths():
                self.host.kernel.make_netns(inner)
                self.host.kernel.move(netns_of(name), link.name, inner)
                self._make_copy(rng, netns_of(name), link.nic_id, index)
                self.witness.promised.pop(name, None)

    def on_pose(self, rng: random.Random) -> None:
        """A hostile container gives its NIC the MAC and alias of another."""
        if self.host.is_running and self.host.nics and self.alive():
            name, nic_id = rng.choice(self.alive()), rng.choice(sorted(self.host.nics))
            self._disguise(name)
            for link in self._nics_in(netns_of(name)):
                link.mac, link.alias = nic_id, link_alias(self.host.instance_id, nic_id)

    def _disguise(self, name: str) -> None:
        self._disguised.add(name)
        if not self._has_records:
            self.witness.promised.pop(name, None)

    def _nics_in(self, path: str) -> list[FakeLink]:
        return [link for link in self.host.kernel.devices_in(path) if link.nic_id]

    def _make_copy(self, rng: random.Random, path: str, nic_id: str, ifindex: int) -> None:
        name = f"copy{rng.randrange(1000)}"
        if not any(link.name == name for link in self.host.kernel.links_in(path)):
            alias = rng.choice(("", link_alias(self.host.instance_id, nic_id)))
            mac = rng.choice((nic_id, nic_id, "02:00:00:00:00:01"))
            self.host.kernel.add_link(path, mac, name, alias, ifindex=rng.choice((0, ifindex)))
            self._for(rng.uniform(1, 2000), lambda: self._drop(path, name))

    def _drop(self, path: str, name: str) -> None:
        if path in self.host.paths() and any(n.name == name for n in self.host.kernel.links_in(path)):
            self.host.kernel.delete_link(path, name)

    async def on_reconfigure(self, rng: random.Random) -> None:
        """Restart the agent with other settings of the pool."""
        await self.kill()
        both = ("vxnet-pods001", "vxnet-pods002")
        min_idle = rng.choice((0, 1, 3))
        self.host.settings = replace(
            self.host.settings, vxnet=rng.choice((both, both[:1], both[1:])), min_idle=min_idle,
            max_idle=min_idle + rng.choice((0, 2, 5)), idle_ttl=rng.choice((5.0, 600.0)),
            policy=rng.choice(("FailRotate", "RoundRotate", "Random")), duplicate_probe=rng.random() < 0.7,
        )  # fmt: skip

    # --- the disk --------------------------------------------------------------------------------------

    def on_full(self, rng: random.Random) -> None:
        self.host.disk.obstacle = "No space left on device"
        self.host.disk.takes_what_it_refuses = rng.random() < 0.3
        self._for(rng.choice((1.0, 30.0, 600.0)), self._repair_disk)

    def on_sluggish(self, rng: random.Random) -> None:
        self.host.disk.seconds = rng.choice((0.004, 0.3, 3.0))
        self._for(rng.uniform(10, 600), self._repair_disk)

    def on_stuck(self, rng: random.Random) -> None:
        self.host.disk.is_stuck = True
        self._for(rng.choice((3.0, 30.0, 300.0)), self._repair_disk)

    async def on_damage(self, rng: random.Random) -> None:
        """Delete the state file while the agent does not run."""
        await self.kill()
        self.witness.strangers += len(self._ours("available"))  # the agent may make others before it adopts these
        for path in self.host.settings.database.parent.glob(f"{self.host.settings.database.name}*"):
            path.unlink()
        self._has_records = self.plan.is_hardware
        for name in self._disguised:
            self._disguise(name)

    def _repair_disk(self) -> None:
        disk, whole = self.host.disk, Disk()
        disk.obstacle, disk.seconds, disk.is_stuck = whole.obstacle, whole.seconds, whole.is_stuck
        disk.takes_what_it_refuses = whole.takes_what_it_refuses

    # --- the cloud, and operators at its console ----------------------------------------------------------

    def on_storm(self, rng: random.Random) -> None:
        """One fault strikes often for a while."""
        self.faults.effects, self.faults.rate = (rng.choice(EVERYTHING),), rng.choice((0.5, 0.9))
        self._for(rng.choice((10.0, 100.0, 900.0)), self._clear_up)

    def on_outage(self, rng: random.Random) -> None:
        self.faults.effects, self.faults.rate = (rng.choice(("reset", "silence", "bad-gateway")),), 1.0
        self._for(rng.choice((60.0, 600.0, 7200.0)), self._clear_up)

    def on_rush(self, rng: random.Random) -> None:
        """The cloud refuses calls for a while: it is busy, or a quota is used up."""
        self.faults.effects, self.faults.codes = ("refuse",), (rng.choice((5100, 2500)),)
        self.faults.rate = rng.choice((0.5, 1.0))
        self._for(rng.choice((60.0, 600.0, 7200.0)), self._clear_up)

    def on_spend(self, rng: random.Random) -> None:
        """Other hosts use up the key's calls of this hour."""
        if limit := self.host.topology.limits.calls_per_hour:
            left = rng.choice((0, 0, 3))
            self.host.model.use_up(self.host.topology.access_key_id, limit - left)

    def on_cut_off(self, rng: random.Random) -> None:
        """Cut the host off from the cloud."""
        self.host.cable.is_cut = True
        self._for(rng.choice((5.0, 60.0, 600.0)), lambda: setattr(self.host.cable, "is_cut", False))

    def _clear_up(self) -> None:
        self.faults.effects, self.faults.rate, self.faults.codes = EVERYTHING, self.rate, CODES

    def _ours(self, *statuses: str) -> list[str]:
        cloud = self.host.model.state.nics
        return sorted(nic_id for nic_id in self.witness.ours_in_cloud() if cloud[nic_id].status in statuses)

    def _console(self, rng: random.Random, action: str, *statuses: str, **params: str) -> None:
        """Do *action* with a NIC of ours in one of *statuses*."""
        if nics := self._ours(*statuses):
            self.host.console(action, rng.choice(nics), **params)
            self.witness.excuse()

    def on_detach(self, rng: random.Random) -> None:
        self._console(rng, "DetachNics", "in-use")

    def on_destroy(self, rng: random.Random) -> None:
        self._console(rng, "DeleteNics", "available")

    def on_elsewhere(self, rng: random.Random) -> None:
        self._console(rng, "AttachNics", "available", instance=self.host.topology.hosts[1].instance_id)

    def on_here(self, rng: random.Random) -> None:
        self._console(rng, "AttachNics", "available", instance=self.host.instance_id)

    def on_readdress(self, rng: random.Random) -> None:
        """Change a private address to a free one, as the console can."""
        if nics := self._ours("available", "in-use"):
            record = self.host.model.state.nics[rng.choice(nics)]
            book = self.host.model.state.vxnets[record.vxnet_id].book
            address = IPv4Address(f"172.20.{record.vxnet_id[-1]}.{rng.randrange(200, 250)}")
            if book is not None and book.is_free(address):
                book.release(IPv4Address(record.private_ip))
                book.claim(address)
                record.private_ip = str(address)

    def on_rename(self, rng: random.Random) -> None:
        """Rename a NIC of ours, so that it is another's."""
        taken = set(self.witness.promised.values())
        if nics := [n for n in self._ours("available", "in-use") if n not in taken]:
            self.host.model.state.nics[rng.choice(nics)].name = "theirs"

    def on_stranger(self, rng: random.Random) -> None:
        """Create a NIC with our name that no table knows."""
        name = f"{self.host.settings.nic_name_prefix}_{self.host.instance_id}_{rng.getrandbits(64):016x}"
        if len(self.witness.ours_in_cloud()) < self.host.settings.max_nics // 2:
            self.host.console("CreateNics", vxnet="vxnet-pods001", count="1", nic_name=name)
            self.witness.strangers += 1

    def on_foreign(self, rng: random.Random) -> None:
        """Attach an operator's own NIC to this host."""
        made = self.host.console("CreateNics", vxnet="vxnet-pods003", count="1", nic_name="foreign")
        if made["ret_code"] == 0:
            (nic,) = made["nics"]
            nic_id = str(nic["nic_id"])
            record = self.host.model.state.nics[nic_id]
            if self.host.console("AttachNics", nic_id, instance=self.host.instance_id)["ret_code"]:
                record.name = "theirs"  # the instance is full

    def on_claim(self, rng: random.Random) -> None:
        """Another machine in the vxnet begins or ends to use an address of ours."""
        claims = self.host.kernel.claims
        nics = sorted(nic.host_address for nic in self.host.nics.values()) if self.host.is_running else []
        if nics and claims.pop(address := rng.choice(nics), None) is None:
            claims[address] = f"02:00:00:00:01:{rng.randrange(4):02x}"

    # --- the end of faults ---------------------------------------------------------------------------

    def _for(self, seconds: float, over: Callable[[], None]) -> None:
        self._until.append((self.host.clock.now() + seconds, over))

    async def calm(self) -> None:
        """End all faults; their consequences remain."""
        for _, over in self._until:
            over()
        self._until.clear()
        topology = self.host.model.topology
        if "budget" in self.plan.conditions:
            topology = replace(topology, limits=msgspec.structs.replace(topology.limits, calls_per_hour=0))
        self.host.model.topology = replace(topology, latencies=Latencies())
        self.rate = 0.0
        self._clear_up()
        self.host.model.set_faults(())
        self.host.kernel.claims.clear()
        self.host.kernel.unseen.clear()
        await self.recover()
        await self.host.clock.sleep(30.0)
        self.host.model.set_faults(())  # delayed calls may have brought faults back
