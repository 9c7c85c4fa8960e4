"""Whether this instance is going away: then nothing is created or attached for it any more."""

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.core.errors import CloudError
from qingcloud_cni.core.seams.cloud import HowUrgent, Instance

FIRST_CHECK, LONGEST_CHECK = 60.0, 900.0  # seconds between checks whether a leaving instance stays after all


class InstanceStatus:
    def __init__(self, context: Context) -> None:
        self._context = context
        self.leaving = ""  # why this instance is going away; "" if it stays
        self._is_watching = False

    def learn(self, instance: Instance) -> None:
        context, cause = self._context, instance.going_away
        if cause != self.leaving:
            if cause:
                context.note("instance.leaving", detail=cause)
            else:
                context.note("instance.staying", detail=f"it is {instance.status} again")
            self.leaving = cause
            self._context.signals.obstacle_gone()
        if cause and not self._is_watching:
            self._is_watching = True
            context.tasks.spawn("instance that is leaving", self._watch())

    async def ask(self, urgency: HowUrgent) -> None:
        """Read it from the cloud, or raise CloudError. An answer that does not list the instance changes nothing."""
        instance = await (await self._context.cloud.permit(urgency)).instance(self._context.identity.instance_id)
        if instance is not None:
            self.learn(instance)

    async def _watch(self) -> None:
        """A stopped instance may be started again, and a termination may be cancelled."""
        checks = 0
        while self.leaving:
            checks += 1
            self._context.journal.push()
            await self._context.clock.sleep(
                delay_after(checks, self._context.rng, first=FIRST_CHECK, longest=LONGEST_CHECK)
            )
            try:
                await self.ask(self._context.urgency.comparison)
            except CloudError as err:
                self._context.note("instance.unanswered", detail=str(err))
        self._is_watching = False
        self._context.journal.push()
