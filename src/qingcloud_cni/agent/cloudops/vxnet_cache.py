"""What is known of vxnets."""

from collections.abc import Callable

from qingcloud_cni.core.seams.cloud import Cloud, HowUrgent, Vxnet


class VxnetCache:
    """Vxnets by id, each asked for once."""

    def __init__(self, cloud: Cloud, on_room: Callable[[str, int], None]) -> None:
        """*on_room* is told how many addresses a vxnet has left, whenever the cloud tells."""
        self._cloud = cloud
        self._on_room = on_room
        self._known: dict[str, Vxnet] = {}

    async def get(self, vxnet_id: str, urgency: HowUrgent) -> Vxnet | None:
        """None where there is no such vxnet, or none with addresses; raises CloudError if the cloud must be asked."""
        if vxnet_id not in self._known:
            await self.learn((vxnet_id,), urgency)
        return self.known(vxnet_id)

    def known(self, vxnet_id: str) -> Vxnet | None:
        """The same without asking."""
        vxnet = self._known.get(vxnet_id)
        return vxnet if vxnet is not None and vxnet.network else None

    async def learn(self, vxnet_ids: tuple[str, ...], urgency: HowUrgent) -> dict[str, Vxnet]:
        """Ask for all of *vxnet_ids* anew; those that exist."""
        calls = await self._cloud.permit(urgency)
        found = {v.vxnet_id: v for v in await calls.vxnets(vxnet_ids)}
        self._known |= found
        for vxnet in found.values():
            if vxnet.available_ips is not None:
                self._on_room(vxnet.vxnet_id, vxnet.available_ips)
        return found
