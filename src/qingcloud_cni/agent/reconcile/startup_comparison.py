"""The first comparison with the cloud: retried until the cloud answers; cloud writes wait for it."""

from pathlib import Path

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.reconcile.preflight import Preflight
from qingcloud_cni.agent.reconcile.reconcile import Reconciler
from qingcloud_cni.core.errors import (
    AgentError,
    CloudError,
    CredentialsRefused,
    KernelRefused,
    NotListed,
    StartRefused,
)
from qingcloud_cni.core.nics.names import parse_nic_name

FIRST_CALL = "DescribeInstances"  # of a comparison: keys that it accepts are right
BELIEVED = 3  # answers in a row that make a setting look wrong, until the agent believes them


class StartupComparison:
    """Runs the preflight, then compares table, kernel and cloud, or postpones that."""

    def __init__(self, context: Context, preflight: Preflight, reconciler: Reconciler, access_file: Path) -> None:
        self.error = ""  # of the latest try
        self._context = context
        self._preflight = preflight
        self._reconciler = reconciler
        self._access_file = access_file
        own = context.identity.instance_id
        self.serves_from_disk = bool(context.table.nics) and all(
            name is None or name.instance_id == own
            for name in (parse_nic_name(nic.name) for nic in context.table.nics.values())
        )
        self._is_checked = False

    async def run(self) -> None:
        """Retry until a comparison succeeds; an agent with NICs serves them meanwhile.

        StartRefused ends an agent without NICs if `BELIEVED` answers in a row reject its keys, do not list an id that
        must exist, or do not fit a setting.
        """
        failures = wrong = 0
        while True:
            try:
                await self._compare()
            except (CloudError, KernelRefused, StartRefused) as err:
                wrong = wrong + 1 if _is_setting(err) else 0
                if wrong >= BELIEVED and not self.serves_from_disk:
                    raise StartRefused(self._explained(err)) from err
                failures += 1
                self.error = str(err)
                self._reconciler.failed(err)
                await self._context.clock.sleep(delay_after(failures, self._context.rng))
            else:
                self.error = ""
                return

    async def _compare(self) -> None:
        if not self._is_checked:
            await self._preflight.check()
            self._is_checked = True
        if self._may_wait():
            self._reconciler.postpone()
            return
        urgency = self._context.urgency.provisioning  # without it the pool cannot grow
        await self._reconciler.compare(await self._reconciler.permits(urgency), urgency)

    def _may_wait(self) -> bool:
        """Whether no NIC can be ours, and calls are so scarce that the first pods need them more."""
        table = self._context.table
        is_empty = not (table.nics or table.intents)
        return is_empty and self._preflight.is_bare and self._context.cloud.spending().is_scarce

    def _explained(self, err: AgentError) -> str:
        if isinstance(err, CredentialsRefused):
            return f"the cloud does not accept the keys in {self._access_file}: {err}"
        return str(err)


def _is_setting(err: AgentError) -> bool:
    """Whether a setting of the operator may be the cause."""
    is_keys = isinstance(err, CredentialsRefused) and err.action == FIRST_CALL
    return is_keys or isinstance(err, NotListed | StartRefused)
