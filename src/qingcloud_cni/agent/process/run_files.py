"""The agent's directories and the token file: created for root alone, never reached through a link."""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from qingcloud_cni.core.errors import AgentError, StartRefused, Unavailable
from qingcloud_cni.posix import DIRECTORY, READ_FILE, is_private, restore_directory, sync_directory

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # a later start may succeed
_LONGEST_TOKEN = 4096  # bytes; one of ours has 65
_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def ensure_directory(path: Path, advice: str) -> None:
    """Create *path* for root alone; StartRefused if another user could change what is in it."""
    try:
        for directory in (*reversed(path.parents), path):
            _make_directory(directory)
        status = _directory_status(path)
        above = [(parent, parent.stat()) for parent in path.resolve().parents]
    except OSError as err:
        cause = "it is a link" if path.is_symlink() else err.strerror
        raise StartRefused(f"directory {path}: creation failed: {cause}; {advice}") from err
    if not is_private(status, 0o022):
        raise _rejected(path, path, status, advice)
    for parent, found in above:
        is_replaceable = found.st_mode & 0o002 and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in {0, os.geteuid()} or is_replaceable:
            raise _rejected(path, parent, found, advice)
    if not os.access(path, os.W_OK):
        raise StartRefused(f"directory {path}: not writable; {advice}, or correct its permissions")


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(0o700)
    except OSError:
        if not path.is_dir():
            raise
    else:
        path.chmod(0o700)  # whatever the umask


def _directory_status(path: Path) -> os.stat_result:
    descriptor = os.open(path, DIRECTORY)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _rejected(path: Path, culprit: Path, status: os.stat_result, advice: str) -> StartRefused:
    return StartRefused(
        f"directory {path}: rejected: other users may change {culprit} (owner {status.st_uid}, mode"
        f" {stat.S_IMODE(status.st_mode):04o}); correct that, or {advice}"
    )


class RunFiles:
    """The run directory's contents under a running agent: each method puts one thing back, as `OwnFiles` has it."""

    def __init__(self, directory: Path, spool: Path, token_file: Path, token: str) -> None:
        self._directory = directory
        self._spool = spool
        self._token_file = token_file
        self._token = token

    async def restore_directory(self) -> str | None:
        return restore_directory(self._directory)

    async def restore_spool(self) -> str | None:
        await self.restore_directory()
        return restore_directory(self._spool)

    async def restore_token(self) -> str | None:
        await self.restore_directory()
        path = self._token_file
        with suppress(StartRefused):
            if _read_token(path) == self._token:
                return None
        try:
            _write_token(path, self._token)
        except OSError as err:
            raise Unavailable(f"token file {path}: write failed: {err.strerror}; remove what is there") from err
        return f"token file {path}"


def renew_token(path: Path) -> tuple[str, str]:
    """Write a new token; return it and the former one, which may be empty.

    StartRefused if the file is none, or others than root can read it: then something else is wrong as well.
    """
    token, former = secrets.token_hex(32), _read_token(path)
    try:
        _write_token(path, token)
    except OSError as err:
        kind = AgentError if err.errno in _PASSING else StartRefused
        raise kind(f"token file {path}: write failed: {err.strerror}; repair {path.parent}, start again") from err
    return token, former


def _write_token(path: Path, token: str) -> None:
    """In one step: a crash leaves the former file or the new one."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(draft, _WRITE_NEW, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        sync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _read_token(path: Path) -> str:
    """The empty text if the file is empty or missing."""
    try:
        with os.fdopen(os.open(path, READ_FILE), "rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_LONGEST_TOKEN) if stat.S_ISREG(status.st_mode) else b""
    except FileNotFoundError:
        return ""
    except OSError as err:
        raise StartRefused(
            f"token file {path}: read failed: {err.strerror}; remove it, the agent writes a new one"
        ) from err
    if not stat.S_ISREG(status.st_mode):
        raise StartRefused(f"token file {path}: rejected: it is not a file; remove it, the agent writes a new one")
    if not is_private(status, 0o077):
        raise StartRefused(
            f"token file {path}: rejected: others can read it; remove it, and the agent writes a new one"
        )
    token = content.decode("ascii", errors="replace").strip()
    if not token.isascii() or not token.isprintable():
        raise StartRefused(
            f"token file {path}: rejected: it holds no token; remove it, and the agent writes a new one"
        )
    return token
