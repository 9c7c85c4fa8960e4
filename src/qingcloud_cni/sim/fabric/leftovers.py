"""The namespaces and files of a simulator: recorded on disk, found again by record or mark, and removed."""

import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from qingcloud_cni.core.errors import AlreadyRunning, KernelRefused, StartRefused
from qingcloud_cni.sim.fabric.names import PORT_GROUP, Mark, parking_namespace, parse_mark
from qingcloud_cni.sim.fabric.shell import NETNS_DIR, ip_batch, ip_json

STATE_ROOT = Path("/run/qingcloud-sim")

_RECORD = "record.json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Written before a simulator makes anything, so that a later command finds all of it."""

    sim: str
    namespaces: tuple[str, ...]
    instance_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Leftovers:
    namespaces: tuple[str, ...]  # routers and hosts
    parking: tuple[str, ...]
    state_dir: Path | None  # None: this simulator has none

    def __bool__(self) -> bool:
        return bool(self.namespaces or self.parking or self.state_dir)


def default_state_dir(sim: str) -> Path:
    return STATE_ROOT / sim


def write_record(state_dir: Path, record: Record) -> None:
    """Claim *state_dir*; StartRefused if it has any content but the state of a dead simulator of this name."""
    if read_record(state_dir, record.sim):
        shutil.rmtree(state_dir, ignore_errors=True)
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        if any(state_dir.iterdir()):
            raise StartRefused(f"state directory {state_dir}: claim failed: it is not empty")
        replace_file(state_dir / _RECORD, msgspec.json.encode(record), mode=0o644)
    except OSError as err:
        raise StartRefused(f"state directory {state_dir}: claim failed: {err.strerror}") from err


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file in one step; without fsync, since no simulated cloud outlives the machine."""
    draft = path.with_name(f"{path.name}.new")
    draft.touch(mode=mode)
    draft.write_bytes(content)
    draft.rename(path)


def read_record(state_dir: Path, sim: str) -> Record | None:
    try:
        record = msgspec.json.decode((state_dir / _RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
    return record if record.sim == sim else None


def check_namespaces_free(sim: str, record: Record) -> None:
    """Raise AlreadyRunning if a namespace exists that this simulator, or an agent on its hosts, would make."""
    for namespace in (*record.namespaces, *map(parking_namespace, record.instance_ids)):
        if (NETNS_DIR / namespace).exists():
            raise AlreadyRunning(
                f"namespace {namespace}: create failed: it exists; if an earlier simulator left it, remove it with"
                f" `qingcloud-sim down --name {sim}` or continue with `up` and its --state-dir; else choose another"
                " --name"
            )


async def is_fabric_present(sim: str, record: Record) -> bool:
    """Whether all namespaces of *record* exist, made by the simulator of this name; StartRefused if only some do."""
    marks = {namespace: await _mark_of(namespace) for namespace in record.namespaces}
    missing = [namespace for namespace, mark in marks.items() if mark is None or mark.sim != sim]
    if not missing:
        return True
    if len(missing) == len(record.namespaces):
        return False
    raise StartRefused(
        f"simulator {sim}: restart failed: namespace {missing[0]} is gone; remove the others with"
        f" `qingcloud-sim down --name {sim}`"
    )


async def find_leftovers(sim: str, state_dir: Path | None) -> Leftovers:
    """Find all that belongs to the simulator of this name, by the marks in namespaces and by the record on disk.

    A namespace that only the record names counts if it has no mark: its simulator died while it made it.
    """
    marks = {namespace: await _mark_of(namespace) for namespace in _existing() if namespace.startswith(f"{sim}-")}
    own = {namespace: mark for namespace, mark in marks.items() if mark and mark.sim == sim}
    directory = state_dir or next((mark.state_dir for mark in own.values()), default_state_dir(sim))
    record = read_record(directory, sim)
    namespaces = set(own)
    instance_ids = {mark.instance_id for mark in own.values() if mark.instance_id}
    if record:
        namespaces |= {name for name in record.namespaces if name in marks and marks[name] is None}
        instance_ids |= set(record.instance_ids)
    is_ours = record is not None or (directory == default_state_dir(sim) and directory.is_dir())
    return Leftovers(
        namespaces=tuple(sorted(namespaces)),
        parking=tuple(sorted(name for name in map(parking_namespace, instance_ids) if (NETNS_DIR / name).exists())),
        state_dir=directory if is_ours else None,
    )


async def remove(leftovers: Leftovers) -> None:
    """Remove *leftovers*, the state directory last because it leads to the rest.

    A namespace that vanishes meanwhile is not a failure.
    """
    for namespace in leftovers.namespaces:
        # The ports go first: every NIC goes with them at once, while the kernel dismantles a namespace some time
        # after its deletion.
        gone = ("No such device", "Cannot open network namespace", "Invalid argument")
        await ip_batch(namespace, [f"link delete group {PORT_GROUP}"], tolerate=gone)
    deletions = [f"netns delete {name}" for name in (*leftovers.parking, *leftovers.namespaces)]
    await ip_batch("", deletions, tolerate=("No such file or directory",))
    if leftovers.state_dir:
        _remove_state(leftovers.state_dir)


def _remove_state(state_dir: Path) -> None:
    shutil.rmtree(state_dir, ignore_errors=True)
    if state_dir.parent == STATE_ROOT:
        with suppress(OSError):  # it has another simulator's directory
            STATE_ROOT.rmdir()


def _existing() -> Iterable[str]:
    try:
        return sorted(path.name for path in NETNS_DIR.iterdir())
    except FileNotFoundError:
        return ()


async def _mark_of(namespace: str) -> Mark | None:
    try:
        rows = await ip_json(namespace, "link", "show", "lo")
    except KernelRefused:  # a name without a namespace behind it
        return None
    return parse_mark(rows[0].get("ifalias", "")) if rows else None
