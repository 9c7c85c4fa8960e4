"""Links and namespaces of this host, behind `core.seams.Kernel`."""

from qingcloud_cni.kernel.host import HostKernel

__all__ = ["HostKernel"]
