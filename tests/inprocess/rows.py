"""Rows of the table, for tests that need some and do not care about the rest of them."""

from dataclasses import replace
from typing import Any

from qingcloud_cni.core.nics.model import Nic, NicState


def make_nic(number: int = 1, state: NicState = NicState.IDLE, since: float = 1.0, **fields: Any) -> Nic:
    """Return NIC *number* as it may be in the table, with *fields* instead of the defaults."""
    nic_id = f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
    return replace(Nic(nic_id, "n", "vxnet-1", "172.16.3.7/24", "172.16.3.1", state, since), **fields)
