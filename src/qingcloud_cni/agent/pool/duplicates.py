"""Duplicate addresses: NICs are probed when they enter the pool, and quarantined if another host answers."""

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.base.tasks import TaskRecord
from qingcloud_cni.core.errors import KernelRefused, LinkNotFound
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.pool.plan import is_proxy, probe_due


class Duplicates:
    """Probes NICs once they are idle, quarantined ones periodically. An ADD that takes the NIC ends the probe."""

    def __init__(self, context: Context, quarantine: float, *, is_on: bool) -> None:
        """*quarantine*: seconds for which an address counts as a duplicate since another host answered for it."""
        self.record = TaskRecord()
        self._context = context
        self._quarantine = quarantine
        self._is_on = is_on
        self._probing: set[str] = set()
        self._probed: dict[str, tuple[Nic, float]] = {}  # by NIC id: its row afterwards, and when the probe began
        self._claimed: dict[tuple[str, str], float] = {}  # by vxnet and address: when another host answered last
        self._proxies: set[str] = set()  # MACs that answer for every address

    def is_probing(self, nic_id: str) -> bool:
        return nic_id in self._probing

    def is_claimed(self, nic: Nic) -> bool:
        """Whether another host answered for its address lately, whichever NIC had it then; it is probed first."""
        at = self._claimed.get((nic.vxnet_id, nic.address))
        return at is not None and self._context.now() - at < self._quarantine

    def begin_due(self) -> None:
        table, now = self._context.table, self._context.now()
        self._probed = {nic_id: seen for nic_id, seen in self._probed.items() if nic_id in table.nics}
        for nic in (n for n in table.in_state(NicState.IDLE, NicState.QUARANTINED) if not n.soil):
            if not self._is_on:
                if nic.state is NicState.QUARANTINED:
                    table.cleared(nic.nic_id, now, "duplicate-probe is off")
            elif self._due(nic) <= now and not (nic.nic_id in self._probing or nic.nic_id in self._context.moves):
                self._probing.add(nic.nic_id)
                self._context.tasks.spawn(f"probe {nic.nic_id}", self._probe(nic))

    def next_due(self) -> float | None:
        """When a quarantined NIC is to be probed next."""
        quarantined = [n for n in self._context.table.in_state(NicState.QUARANTINED) if not n.soil]
        return min((self._due(nic) for nic in quarantined if nic.nic_id not in self._probing), default=None)

    def _due(self, nic: Nic) -> float:
        """An idle NIC is due unless it was probed since it became idle; after a start all are."""
        row, at = self._probed.get(nic.nic_id, (None, 0.0))
        if row is not None and nic.state is NicState.QUARANTINED:
            return probe_due(nic, at)
        return float("inf") if row is nic else nic.since

    async def _probe(self, nic: Nic) -> None:
        context, begun, row = self._context, self._context.now(), nic
        try:
            with self.record.run(context.clock):
                claimant = await self._probe_link(nic)
        except KernelRefused as err:
            if self.record.failures == 1:  # the kernel refuses every probe for the same reason
                context.note("nic.probe-failed", nic.nic_id, detail=str(err))
        else:
            row = self._judge(nic, claimant) if claimant is not None else nic
        finally:
            self._probing.discard(nic.nic_id)
        self._probed[nic.nic_id] = row, begun
        context.journal.push()
        self._context.signals.plan_due.notify()

    async def _probe_link(self, nic: Nic) -> str | None:
        """The MAC that uses its address, else ""; None if the NIC was taken or lost meanwhile."""
        try:
            return await self._context.kernel.probe(nic.nic_id, nic.host_address)
        except LinkNotFound:
            return None

    def _judge(self, nic: Nic, claimant: str) -> Nic:
        """Act on the result of a probe; the row that was probed, as it is now."""
        table, now, address = self._context.table, self._context.now(), (nic.vxnet_id, nic.address)
        if claimant and claimant not in self._proxies and is_proxy(self._others(nic), claimant):
            self._distrust(claimant)
        is_used = claimant and claimant not in self._proxies
        if is_used:
            self._claimed = {key: at for key, at in self._claimed.items() if now - at < self._quarantine}
            self._claimed[address] = now
        else:
            self._claimed.pop(address, None)
        if table.nics.get(nic.nic_id) is not nic:  # an ADD took it meanwhile
            if is_used:
                detail = f"{nic.host_address} is used by {claimant}; the NIC was assigned before the probe ended"
                self._context.note("nic.duplicate", nic.nic_id, detail=detail)
            return nic
        if is_used and nic.state is NicState.IDLE:
            table.quarantined(nic.nic_id, now, claimant)
        elif not is_used and nic.state is NicState.QUARANTINED:
            table.cleared(nic.nic_id, now, f"no other host answers for {nic.host_address} any more")
        return table.nics[nic.nic_id]

    def _others(self, nic: Nic) -> list[Nic]:
        return [n for n in self._context.table.nics.values() if n.nic_id != nic.nic_id]

    def _distrust(self, claimant: str) -> None:
        """Clear the NICs that were quarantined because of *claimant*; they are probed once more."""
        self._proxies.add(claimant)
        words = f"{claimant} answers for every address: its answers are ignored"
        self._context.note("probe.distrusted", detail=words)
        for nic in self._context.table.in_state(NicState.QUARANTINED):
            if nic.claimant == claimant:
                self._context.table.cleared(nic.nic_id, self._context.now(), words)
