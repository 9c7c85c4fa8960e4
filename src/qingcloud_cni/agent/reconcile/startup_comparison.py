"""The first comparison with the cloud: repeated until the cloud answers; only then are cloud writes made."""

from pathlib import Path

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.reconcile.preflight import Preflight
from qingcloud_cni.agent.reconcile.reconcile import Reconciler
from qingcloud_cni.core.errors import CloudError, CredentialsRefused, KernelRefused, NotListed, StartRefused

FIRST_CALL = "DescribeInstances"  # of a comparison: keys that were good for it are no wrong ones
UNLISTED = 3  # answers that do not list what must be there, until it is believed


class StartupComparison:
    """Preflight checked, then table, kernel and cloud compared, or that put off."""

    def __init__(
        self,
        context: Context,
        preflight: Preflight,
        reconciler: Reconciler,
        access_file: Path,
        *,
        serves_from_disk: bool,
    ) -> None:
        self.error = ""  # of the latest try
        self._context = context
        self._preflight = preflight
        self._reconciler = reconciler
        self._access_file = access_file
        self._serves_from_disk = serves_from_disk
        self._is_checked = False

    async def run(self) -> None:
        """Compare once, however often that has to be tried; one with NICs goes on serving them.

        StartRefused ends an agent that has nothing to serve yet where its keys are not accepted, or where several
        answers in turn do not list an id that must be there.
        """
        failures = unlisted = 0
        while True:
            try:
                await self._compare()
            except (CloudError, KernelRefused) as err:
                unlisted += isinstance(err, NotListed)
                if not self._serves_from_disk:
                    self._judge(err, unlisted)
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
            self._reconciler.put_off()
            return
        urgency = self._context.urgency.provisioning  # without it the pool cannot grow
        await self._reconciler.compare(await self._reconciler.permits(urgency), urgency)

    def _may_wait(self) -> bool:
        """Whether calls are scarce and nothing here can be ours: the first pods need them more."""
        table = self._context.table
        is_empty = not (table.nics or table.intents)
        return is_empty and self._preflight.is_bare and self._context.cloud.spending().is_scarce

    def _judge(self, err: CloudError | KernelRefused, unlisted: int) -> None:
        if isinstance(err, CredentialsRefused) and err.action == FIRST_CALL:
            raise StartRefused(f"the cloud does not accept the keys in {self._access_file}: {err}") from err
        if unlisted == UNLISTED:
            raise StartRefused(str(err)) from err
