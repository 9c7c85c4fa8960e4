"""The cloud writes, each from its intent to its end: what is asked, what a lost reply means, what comes after.

Every operation can be taken up at any point after its intent was saved; that is what `resume` does after a restart.
No write is repeated before DescribeNics has told what the first one did.
"""

from qingcloud_cni.agent.base.context import Context
from qingcloud_cni.agent.cloudops.instance_status import InstanceStatus
from qingcloud_cni.agent.cloudops.jobs import Jobs
from qingcloud_cni.agent.cloudops.provisioning import Provisioner
from qingcloud_cni.agent.cloudops.release import Releaser
from qingcloud_cni.agent.cloudops.vxnet_cache import VxnetCache
from qingcloud_cni.core.nics.model import Intent, OpKind
from qingcloud_cni.core.pool.vxnets import VxnetChooser


class Operations:
    """What makes NICs come and go."""

    def __init__(self, context: Context, jobs: Jobs, chooser: VxnetChooser, vxnets: VxnetCache) -> None:
        self.instance_status = InstanceStatus(context)
        self.provisioner = Provisioner(context, jobs, chooser, vxnets, self.instance_status)
        self.releaser = Releaser(context, jobs, self.provisioner.lookups)

    async def resume(self, intent: Intent) -> None:
        """Take up an operation that was under way when the agent ended."""
        part = self.provisioner if intent.kind in {OpKind.CREATE, OpKind.ATTACH} else self.releaser
        await part.resume(intent)
