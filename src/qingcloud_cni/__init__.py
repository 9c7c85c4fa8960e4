"""Gives every container a QingCloud NIC of its own."""

from importlib.metadata import version

__version__ = version("qingcloud-cni")
