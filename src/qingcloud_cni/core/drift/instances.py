"""What the state of an instance means for its NICs. Pure."""

from qingcloud_cni.core.seams.cloud import Instance

GONE = frozenset({"terminated", "ceased"})  # for good; a terminated one lies in the recycle bin for two hours
_AWAY = frozenset({"stopped", "suspended"}) | GONE
_GOING = frozenset({"stopping", "suspending", "terminating", "ceasing"})  # transitions
_COMING = frozenset({"starting", "resuming", "recovering"})


def is_gone(instance: Instance) -> bool:
    """Whether it will not run any more."""
    return instance.status in GONE and instance.transition not in _COMING


def going_away(instance: Instance) -> str:
    """Why nothing should be attached to the instance any more, in words; "" where it runs, or will at once."""
    if instance.transition in _COMING:
        return ""
    if instance.status in _AWAY:
        return f"instance {instance.instance_id} is {instance.status} in the cloud"
    if instance.transition in _GOING:
        return f"instance {instance.instance_id} is {instance.transition} in the cloud"
    return ""
