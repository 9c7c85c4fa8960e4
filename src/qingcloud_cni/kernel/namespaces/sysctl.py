"""Settings of the kernel below /proc/sys/net, of the namespace the calling thread is in; a name is "net/ipv4/…"."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from qingcloud_cni.core.errors import KernelRefused
from qingcloud_cni.kernel.namespaces.namespaces import write_setting

ROOT: Final = Path("/proc/sys")
CONF: Final = "net/ipv4/conf"
IP_FORWARD: Final = "net/ipv4/ip_forward"


def read(name: str) -> str | None:
    """A setting's value; None where the kernel has no such setting, or no longer."""
    try:
        return (ROOT / name).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise KernelRefused(f"setting {name}: read: {err.strerror}") from err


def write(name: str, value: str) -> None:
    """Set a setting; nothing to do where there is none of this name."""
    with suppress(FileNotFoundError):
        try:
            write_setting(str(ROOT / name), value.encode())
        except FileNotFoundError:
            raise
        except OSError as err:
            raise KernelRefused(f"setting {name}: write {value}: {err.strerror}") from err


def ensure(wanted: Mapping[str, str]) -> None:
    """Set those of *wanted* that are not so yet."""
    for name, value in wanted.items():
        if read(name) not in (value, None):
            write(name, value)


def before(wanted: Mapping[str, str]) -> dict[str, str]:
    """The values now of all that `change` would change, and `restore` would have to put back."""
    now = {name: read(name) for name in wanted}
    changed = {name: value for name, value in now.items() if value is not None and value != wanted[name]}
    if IP_FORWARD in changed:
        changed |= _overwritten_with_ip_forward()
    return changed


def change(wanted: Mapping[str, str]) -> dict[str, str]:
    """Set all of *wanted* or, if one is refused, none; the values before of all that `restore` has to put back."""
    changed = before(wanted)
    try:
        for name in (n for n in wanted if n in changed):
            write(name, wanted[name])
    except KernelRefused:
        restore(changed)
        raise
    return changed


def restore(settings: Mapping[str, str]) -> None:
    """Put *settings* back: IP_FORWARD first, for writing it changes others."""
    for name in sorted(settings, key=lambda name: name != IP_FORWARD):
        if read(name) not in (settings[name], None):
            write(name, settings[name])


def _overwritten_with_ip_forward() -> Iterator[tuple[str, str]]:
    """What the kernel overwrites with each change of IP_FORWARD, as far as a change back would not set it right.

    It sets `forwarding` of every link to the new value, and `accept_redirects` of "all" to the opposite
    (linux/net/ipv4/devinet.c, inet_forward_change).
    """
    name = f"{CONF}/all/accept_redirects"
    if value := read(name):
        yield name, value
    for folder in (ROOT / CONF).iterdir():
        name = f"{CONF}/{folder.name}/forwarding"
        if folder.name != "all" and (value := read(name)) not in ("0", None):
            yield name, str(value)
