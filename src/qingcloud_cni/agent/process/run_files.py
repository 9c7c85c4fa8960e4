"""The run directory and the token file in it: made at start, root's own."""

import os
import secrets
import stat
from pathlib import Path

from qingcloud_cni.core.errors import StartRefused

_LONGEST_TOKEN = 4096  # bytes; one of ours has 65


def ensure_directory(path: Path, flag: str) -> None:
    """A directory of root's own; *flag* is the one that names it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise StartRefused(f"directory {path} cannot be made: {err.strerror}; choose another {flag}") from err
    if not os.access(path, os.W_OK):
        raise StartRefused(f"directory {path} is not writable; choose another {flag} or mend its permissions")


def ensure_token(path: Path) -> str:
    """The token in *path*, made if there is none; StartRefused where others could read it."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return _read_token(path)
    except OSError as err:
        raise StartRefused(f"token file {path} cannot be made: {err.strerror}") from err
    token = secrets.token_hex(32)
    with os.fdopen(fd, "w") as file:
        file.write(token + "\n")
    return token


def _read_token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_LONGEST_TOKEN)
    except OSError as err:
        raise StartRefused(f"token file {path} cannot be read: {err.strerror}") from err
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise StartRefused(
            f"token file {path} can be read by others; remove it, and the agent makes a new one, or chmod 600 it"
        )
    token = content.decode("ascii", errors="replace").strip()
    if not token:
        raise StartRefused(f"token file {path} is empty; remove it, and the agent makes a new one")
    if not token.isascii() or not token.isprintable():
        raise StartRefused(f"token file {path} holds no token; remove it, and the agent makes a new one")
    return token
