"""Links and namespaces of this host, behind `core.seams.Kernel`."""

from qingcloud_cni.kernel.host import HostKernel
from qingcloud_cni.kernel.links.reserved import local_macs

__all__ = ["HostKernel", "local_macs"]
