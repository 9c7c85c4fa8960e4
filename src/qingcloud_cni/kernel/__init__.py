"""Links and namespaces of this host, behind `core.seams.Kernel`."""

from qingcloud_cni.kernel.host import HostKernel
from qingcloud_cni.kernel.links.reserved import iface_macs, local_macs

__all__ = ["HostKernel", "iface_macs", "local_macs"]
