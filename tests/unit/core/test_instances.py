"""What the state of an instance means for its NICs."""

import pytest

from qingcloud_cni.core.drift.instances import going_away, is_gone
from qingcloud_cni.core.seams.cloud import Instance


@pytest.mark.parametrize(
    ("status", "transition", "cause"),
    [
        ("running", "", ""),
        ("running", "restarting", ""),
        ("pending", "creating", ""),
        ("", "", ""),
        ("running", "stopping", "instance i-1 is stopping in the cloud"),
        ("running", "suspending", "instance i-1 is suspending in the cloud"),
        ("running", "terminating", "instance i-1 is terminating in the cloud"),
        ("stopped", "", "instance i-1 is stopped in the cloud"),
        ("stopped", "starting", ""),
        ("suspended", "resuming", ""),
        ("suspended", "", "instance i-1 is suspended in the cloud"),
        ("stopped", "terminating", "instance i-1 is stopped in the cloud"),
        ("terminated", "", "instance i-1 is terminated in the cloud"),
        ("terminated", "recovering", ""),
        ("ceased", "", "instance i-1 is ceased in the cloud"),
    ],
)
def test_whether_an_instance_is_going_away(status: str, transition: str, cause: str) -> None:
    assert going_away(Instance("i-1", status, (), transition)) == cause


def test_only_what_is_terminated_or_ceased_is_gone() -> None:
    gone = {s for s in ("pending", "running", "stopped", "suspended", "terminated", "ceased", "") if
            is_gone(Instance("i-1", s, ()))}  # fmt: skip
    assert gone == {"terminated", "ceased"}
