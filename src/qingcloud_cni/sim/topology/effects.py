"""What the simulated cloud asks of whatever plays its hardware: the fabric, or the fake kernel of simulations."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlugNic:
    """A NIC's link appears in the namespace of its host, up."""

    nic_id: str
    instance_id: str
    vxnet_id: str
    private_ip: str
    enable_aspoof: bool
    link_name: str = ""  # what stands before the number in its name, now and whenever it comes back; "": as usual


@dataclass(frozen=True, slots=True)
class UnplugNic:
    """A NIC's link vanishes, in whichever namespace it is."""

    nic_id: str


@dataclass(frozen=True, slots=True)
class FilterNic:
    """The address or the anti-spoofing of a plugged NIC has changed."""

    nic_id: str
    private_ip: str
    enable_aspoof: bool


Effect = PlugNic | UnplugNic | FilterNic
