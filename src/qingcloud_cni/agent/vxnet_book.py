"""What is known of vxnets."""

from qingcloud_cni.core.seams import Cloud, Vxnet


class VxnetBook:
    """Vxnets by id, each asked for once."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._known: dict[str, Vxnet] = {}

    async def get(self, vxnet_id: str) -> Vxnet | None:
        """None where there is no such vxnet, or none with addresses; raises CloudError if the cloud must be asked."""
        if vxnet_id not in self._known:
            await self.learn((vxnet_id,))
        return self.known(vxnet_id)

    def known(self, vxnet_id: str) -> Vxnet | None:
        """The same without asking."""
        vxnet = self._known.get(vxnet_id)
        return vxnet if vxnet is not None and vxnet.network else None

    async def learn(self, vxnet_ids: tuple[str, ...]) -> dict[str, Vxnet]:
        """Ask for all of *vxnet_ids* anew; those that exist."""
        found = {v.vxnet_id: v for v in await self._cloud.vxnets(vxnet_ids)}
        self._known |= found
        return found
