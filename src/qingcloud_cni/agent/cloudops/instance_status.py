"""Whether the instance under the agent is going away: then nothing is created or attached for it any more."""

from qingcloud_cni.agent.base.clock import delay_after
from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.core.errors import CloudError
from qingcloud_cni.core.seams.cloud import HowUrgent, Instance

LOOK_FIRST, LOOK_LONGEST = 60.0, 900.0  # seconds between looks whether it stays after all


class InstanceStatus:
    """Keeps `Context.leaving` as the cloud tells it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._is_watching = False

    def learn(self, instance: Instance) -> None:
        """What the cloud says of this instance."""
        context, cause = self._context, instance.going_away
        if cause != context.leaving:
            if cause:
                context.note("instance.leaving", detail=cause)
            else:
                context.note("instance.staying", detail=f"it is {instance.status} again")
            context.leaving = cause
            context.look_again()
        if cause and not self._is_watching:
            self._is_watching = True
            context.tasks.spawn("instance that is leaving", self._watch())

    async def ask(self, urgency: HowUrgent) -> None:
        """Learn it from the cloud; raises CloudError. An answer that does not list the instance tells nothing."""
        instance = await (await self._context.cloud.permit(urgency)).instance(self._context.instance_id)
        if instance is not None:
            self.learn(instance)

    async def _watch(self) -> None:
        """An instance that was only stopped may run again, and a termination may be taken back."""
        looks = 0
        while self._context.leaving:
            looks += 1
            self._context.journal.push()
            await self._context.clock.sleep(
                delay_after(looks, self._context.rng, first=LOOK_FIRST, longest=LOOK_LONGEST)
            )
            try:
                await self.ask(self._context.urgency.comparison)
            except CloudError as err:
                self._context.note("instance.unanswered", detail=str(err))
        self._is_watching = False
        self._context.journal.push()
