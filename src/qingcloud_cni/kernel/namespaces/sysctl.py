"""Kernel settings below /proc/sys/net, in the calling thread's namespace; a name is "net/ipv4/…"."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.kernel.namespaces.namespaces import write_setting

ROOT: Final = Path("/proc/sys")
CONF: Final = "net/ipv4/conf"
IP_FORWARD: Final = "net/ipv4/ip_forward"


def read(name: str) -> str | None:
    """A setting's value; None if the kernel does not have the setting."""
    try:
        return (ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise KernelRefused(f"setting {name}: read failed: {err.strerror}") from err


def write(name: str, value: str) -> None:
    """Change a setting, if the kernel has it."""
    try:
        write_setting(str(ROOT / name), value.encode())
    except FileNotFoundError:
        return
    except OSError as err:
        raise KernelRefused(f"setting {name}: write {value} failed: {err.strerror}") from err


def ensure(wanted: Mapping[str, str]) -> list[str]:
    """Write those of *wanted* that differ, one after the other; returns their names."""
    changed = []
    for name, value in wanted.items():
        if read(name) not in (value, None):
            write(name, value)
            changed.append(name)
    return changed


def before(wanted: Mapping[str, str]) -> dict[str, str]:
    """The present values of all settings that `change` would change."""
    now = {name: read(name) for name in wanted}
    changed = {name: value for name, value in now.items() if value is not None and value != wanted[name]}
    if IP_FORWARD in changed:
        changed |= _overwritten_with_ip_forward()
    return changed


def change(wanted: Mapping[str, str]) -> dict[str, str]:
    """Write all of *wanted*, or none if the kernel rejects one; returns the earlier values, for `restore`."""
    changed = before(wanted)
    try:
        for name in (n for n in wanted if n in changed):
            write(name, wanted[name])
    except KernelRefused:
        restore(changed)
        raise
    return changed


def restore(settings: Mapping[str, str]) -> None:
    """Write *settings* back, IP_FORWARD first because it changes others."""
    ensure(dict(sorted(settings.items(), key=lambda setting: setting[0] != IP_FORWARD)))


def _overwritten_with_ip_forward() -> Iterator[tuple[str, str]]:
    """The settings that a change of IP_FORWARD overwrites and a change back does not restore.

    The kernel sets `forwarding` of every link to the new value, and `accept_redirects` of "all" to the opposite
    (linux/net/ipv4/devinet.c, inet_forward_change).
    """
    name = f"{CONF}/all/accept_redirects"
    if value := read(name):
        yield name, value
    for folder in (ROOT / CONF).iterdir():
        name = f"{CONF}/{folder.name}/forwarding"
        if folder.name != "all" and (value := read(name)) not in ("0", None):
            yield name, str(value)
