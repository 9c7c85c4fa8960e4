"""When a quarantined NIC is probed again, and who is taken for a proxy."""

from hypothesis import given
from hypothesis import strategies as st

from inprocess.rows import make_nic
from qingcloud_cni.core.nics.model import Nic, NicState
from qingcloud_cni.core.pool.plan import FIRST_PAUSE, LONGEST_PAUSE, is_proxy, probe_due

NOW = 1_700_000_000.0
ROBBER, OTHER = "02:00:00:00:00:99", "02:00:00:00:00:98"


def nic(number: int, state: NicState = NicState.QUARANTINED, claimant: str = ROBBER) -> Nic:
    return make_nic(number, state, NOW, claimant=claimant)


def test_pauses_double_up_to_half_an_hour() -> None:
    quarantined, at, pauses = nic(1), NOW, []
    for _ in range(8):
        due = probe_due(quarantined, at)
        pauses.append(due - at)
        at = due
    assert pauses == [60, 60, 120, 240, 480, 960, 1800, 1800]


@given(st.floats(-10, 1e6))
def test_a_pause_is_never_shorter_or_longer_than_it_may_be(since: float) -> None:
    """The probe that led to the quarantine began somewhat before it."""
    probed = NOW + since
    assert FIRST_PAUSE - 1e-6 <= probe_due(nic(1), probed) - probed <= LONGEST_PAUSE + 1e-6


def test_one_mac_with_three_addresses_is_a_proxy() -> None:
    assert not is_proxy([], ROBBER)
    assert not is_proxy([nic(1)], ROBBER)
    assert is_proxy([nic(1), nic(2)], ROBBER)
    assert not is_proxy([nic(1), nic(2, claimant=OTHER), nic(3, NicState.IDLE)], ROBBER)
