"""The run directory and the token file in it, created at start for root alone."""

import errno
import os
import secrets
import stat
from pathlib import Path

from qingcloud_cni.core.errors import AgentError, StartRefused
from qingcloud_cni.posix import sync_directory

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # a later start may succeed
_LONGEST_TOKEN = 4096  # bytes; one of ours has 65


def ensure_directory(path: Path, flag: str) -> None:
    """Create *path* for root alone; *flag* is the setting that names it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise StartRefused(f"directory {path}: creation failed: {err.strerror}; choose another {flag}") from err
    if not os.access(path, os.W_OK):
        raise StartRefused(f"directory {path}: not writable; choose another {flag}, or correct its permissions")


def ensure_token(path: Path) -> str:
    """The token in *path*, which is written if it is missing or empty; StartRefused if others can read it."""
    while True:
        is_there = os.path.lexists(path)
        if is_there and (token := _read_token(path)):
            return token
        try:
            _write_token(path, replaces=is_there)
        except FileExistsError:
            continue  # another agent was faster
        except OSError as err:
            kind = AgentError if err.errno in _PASSING else StartRefused
            raise kind(f"token file {path}: write failed: {err.strerror}; repair {path.parent}, start again") from err


def _write_token(path: Path, *, replaces: bool) -> None:
    """In one step: a crash leaves a whole file, or none."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(draft, "x", opener=_private) as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if replaces:
            draft.replace(path)
        else:
            path.hardlink_to(draft)
        sync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _read_token(path: Path) -> str:
    """The empty text if the file is empty."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_LONGEST_TOKEN)
    except OSError as err:
        raise StartRefused(
            f"token file {path}: read failed: {err.strerror}; remove it, the agent writes a new one"
        ) from err
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise StartRefused(
            f"token file {path}: rejected: others can read it; remove it, and the agent writes a new one"
        )
    token = content.decode("ascii", errors="replace").strip()
    if not token.isascii() or not token.isprintable():
        raise StartRefused(
            f"token file {path}: rejected: it holds no token; remove it, and the agent writes a new one"
        )
    return token
