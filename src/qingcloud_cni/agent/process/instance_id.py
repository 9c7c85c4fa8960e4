"""The id of this instance where neither setting nor file has it: the cloud knows whose NIC --iface has."""

import random
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from qingcloud_cni.agent.base import logs
from qingcloud_cni.agent.base.clock import SystemClock, delay_after
from qingcloud_cni.agent.reconcile.preflight import check_iface_nic
from qingcloud_cni.agent.reconcile.startup_comparison import BELIEVED
from qingcloud_cni.agent.settings.settings import Settings
from qingcloud_cni.cloud import Access, AioTransport, Caller, Client, Limiter
from qingcloud_cni.core.budget import Budget, Urgency
from qingcloud_cni.core.errors import CloudError, CredentialsRefused, NotListed, StartRefused
from qingcloud_cni.core.nics.names import INSTANCE_ID
from qingcloud_cni.core.seams.clock import Clock
from qingcloud_cni.core.seams.cloud import Cloud
from qingcloud_cni.kernel import iface_macs


async def find_instance_id(settings: Settings, access: Access) -> str:
    """The id that an earlier start found for the same MAC, else the cloud's; waits until the cloud answers."""
    macs = iface_macs(settings.iface)
    if found := remembered(settings.found_instance, macs):
        return found
    clock, rng = SystemClock(), random.Random()
    limiter = Limiter(Budget(settings.api_budget, clock.now()), clock=clock, rng=rng, on_rate=logs.calls_refused)
    cloud = Client(Caller(access, AioTransport(access), limiter, clock=clock, rng=rng, observe=logs.cloud_call))
    try:
        instance_id = await ask_for_instance(cloud, macs, clock, rng)
    finally:
        await cloud.close()
    with suppress(OSError):  # the next start asks again
        settings.found_instance.write_text(f"{instance_id} {' '.join(sorted(macs))}\n")
    return instance_id


async def ask_for_instance(cloud: Cloud, macs: Collection[str], clock: Clock, rng: random.Random) -> str:
    """StartRefused if `BELIEVED` answers in a row show a wrong setting."""
    failures = wrong = 0
    while True:
        try:
            calls = await cloud.permit(lambda: Urgency.WAITING)
            return check_iface_nic(await calls.nics(nic_ids=sorted(macs)), macs)
        except CloudError as err:
            failures, wrong = failures + 1, wrong + 1 if isinstance(err, CredentialsRefused | NotListed) else 0
            if wrong >= BELIEVED:
                raise StartRefused(f"{err}; or set --instance-id") from err
            logs.write("instance.unfound", cause=str(err))
        await clock.sleep(delay_after(failures, rng))


def remembered(path: Path, macs: Collection[str]) -> str:
    """What `find_instance_id` wrote; "" for other MACs, as after the host's disk was cloned."""
    with suppress(OSError, ValueError):
        instance_id, *known = path.read_text().split()
        if INSTANCE_ID.fullmatch(instance_id) and sorted(macs) == known:
            return instance_id
    return ""
