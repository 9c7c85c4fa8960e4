"""The cloud writes, each from its intent to its end: what is asked, what a lost reply means, what comes after.

Every operation can be taken up at any point after its intent was saved; that is what `resume` does after a restart.
No write is repeated before DescribeNics has told what the first one did.
"""

from qingcloud_cni.agent.context import Context
from qingcloud_cni.agent.departure import Departure
from qingcloud_cni.agent.growth import Growth
from qingcloud_cni.agent.jobs import Jobs
from qingcloud_cni.agent.shrinking import Shrinking
from qingcloud_cni.agent.vxnet_book import VxnetBook
from qingcloud_cni.core.model import Intent, OpKind
from qingcloud_cni.core.vxnets import VxnetChooser


class Operations:
    """What makes NICs come and go."""

    def __init__(self, context: Context, jobs: Jobs, chooser: VxnetChooser, vxnets: VxnetBook) -> None:
        self.departure = Departure(context)
        self.growth = Growth(context, jobs, chooser, vxnets, self.departure)
        self.shrinking = Shrinking(context, jobs, self.growth.lookups)

    async def resume(self, intent: Intent) -> None:
        """Take up an operation that was under way when the agent ended."""
        part = self.growth if intent.kind in {OpKind.CREATE, OpKind.ATTACH} else self.shrinking
        await part.resume(intent)
