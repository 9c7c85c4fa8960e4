"""Addresses that somebody else uses: when to ask again, and whose answers mean nothing. Pure."""

from collections.abc import Iterable

from qingcloud_cni.core.nics.model import Nic, NicState

FIRST_PAUSE = 60.0  # seconds from the quarantine to the next probe; from then on they double …
LONGEST_PAUSE = 1800.0  # … up to this
PROXY_CLAIMS = 3  # addresses that one MAC may claim: who claims more answers for everybody


def probe_due(nic: Nic, probed: float) -> float:
    """When a quarantined NIC that was probed last at *probed* is to be probed again, in seconds since the epoch."""
    return probed + min(max(probed - nic.since, FIRST_PAUSE), LONGEST_PAUSE)


def is_proxy(nics: Iterable[Nic], claimant: str) -> bool:
    """Whether *claimant*, that has just answered once more, is a proxy of the vxnet rather than a duplicate.

    One that answers for every address would otherwise empty the pool.
    """
    claims = sum(n.state is NicState.QUARANTINED and n.claimant == claimant for n in nics)
    return claims + 1 >= PROXY_CLAIMS
