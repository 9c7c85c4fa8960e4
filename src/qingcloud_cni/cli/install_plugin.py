"""Writes the plugin into the container runtime's directory.

A console script of pip would lose the interpreter's flags and run from a virtual environment, which triples the
start. The file has a shebang with `-IS`, the program compiled by that interpreter (compiling for every pod would cost
a third of the start), and the source for after an upgrade of the interpreter.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.posix import sync_directory

NAME = "qingcni"
OLDEST = (3, 11)
SHEBANG_LIMIT = 127  # bytes; kernels before 5.1 cut off the rest
_TIMEOUT = 30.0  # seconds for an interpreter to answer

# Run by the interpreter that is to run the plugin, without -S: only then does it know about virtual environments.
_EXAMINE = """
import json, marshal, sys
from _frozen_importlib_external import MAGIC_NUMBER
code = compile(sys.stdin.read(), "qingcni", "exec", dont_inherit=True, optimize=2)
print(json.dumps({
    "version": sys.version_info[:2], "implementation": sys.implementation.name, "magic": MAGIC_NUMBER.hex(),
    "is_virtual": sys.prefix != sys.base_prefix, "base": sys.base_prefix, "code": marshal.dumps(code).hex(),
}))
"""

_FILE = """\
#!{python} -IS
# qingcni, the CNI plugin of qingcloud-cni. Written by `qingagent install-plugin`: do not edit, write it again.
# Compiled for Python {version}; every other version runs the source in the last line: Python skips a comment fast.
from _frozen_importlib_external import MAGIC_NUMBER
if MAGIC_NUMBER.hex() == "{magic}":
    import marshal
    exec(marshal.loads(bytes.fromhex("{code}")))
else:
    with open(__file__, encoding="ascii") as file:
        exec(eval(file.read().rpartition("\\n# ")[2]))
# {source}
"""


def install_plugin(bin_dir: Path, python: Path | None) -> Path:
    """Write the plugin into *bin_dir* atomically; return its path.

    *python* is the interpreter in its shebang, by default the base of this program's environment. StartRefused if the
    interpreter or the directory is unusable.
    """
    if not bin_dir.is_dir():
        raise StartRefused(f"{bin_dir}: not a directory; create it, or set the runtime's with --bin-dir")
    source = resources.files("qingcloud_cni.plugin").joinpath("qingcni.py").read_text(encoding="utf-8")
    interpreter = _base_interpreter() if python is None else python
    text = _compose(interpreter, source)
    path = bin_dir / NAME
    draft = bin_dir / f".{NAME}.{secrets.token_hex(4)}"
    try:
        try:
            _write(draft, text)
            _try(draft)
            draft.replace(path)
            sync_directory(bin_dir)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as err:
        raise StartRefused(f"{path}: write failed: {err.strerror}") from err
    return path


def _base_interpreter() -> Path:
    """The interpreter that a virtual environment was created from.

    By its plain name if possible, which outlives an upgrade of the distribution's Python.
    """
    prefix = Path(sys.base_prefix) / "bin"
    versioned = prefix / f"python{sys.version_info.major}.{sys.version_info.minor}"
    plain = prefix / "python3"
    with contextlib.suppress(OSError):
        if plain.samefile(versioned):
            return plain
    if versioned.exists():
        return versioned
    raise StartRefused(f"{versioned}: not found; set an interpreter with --python")


def _compose(python: Path, source: str) -> str:
    if not python.is_absolute():
        raise StartRefused(f"{python}: not an absolute path; set the interpreter's absolute path")
    shebang = f"#!{python} -IS"
    if any(char.isspace() for char in str(python)) or len(os.fsencode(shebang)) > SHEBANG_LIMIT:
        raise StartRefused(
            f"{python}: the kernel rejects an interpreter whose path has blanks or more than 120 bytes"
        )
    facts = _examine(python, source)
    version = ".".join(map(str, facts["version"]))
    if facts["implementation"] != "cpython" or tuple(facts["version"]) < OLDEST:
        raise StartRefused(
            f"{python}: is {facts['implementation']} {version}; CPython {OLDEST[0]}.{OLDEST[1]} or later is required"
        )
    if facts["is_virtual"]:
        raise StartRefused(
            f"{python}: belongs to a virtual environment, which may be removed; set the interpreter in "
            f"{facts['base']}/bin, or none"
        )
    return _FILE.format(
        python=python, version=version, magic=facts["magic"], code=facts["code"], source=ascii(source)
    )


def _examine(python: Path, source: str) -> dict[str, Any]:
    """Facts about the interpreter, and the plugin compiled by it."""
    if not os.access(python, os.X_OK) or not python.is_file():
        raise StartRefused(f"{python}: not executable; set an interpreter with --python")
    command = [str(python), "-I", "-X", "no_debug_ranges", "-c", _EXAMINE]  # without columns the code loads faster
    try:
        done = subprocess.run(command, input=source.encode(), capture_output=True, timeout=_TIMEOUT, check=True)
        facts: dict[str, Any] = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as err:
        raise StartRefused(f"{python}: not a Python interpreter that can run the plugin") from err
    return facts


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fchmod(file.fileno(), 0o755)
        os.fsync(file.fileno())


def _try(path: Path) -> None:
    """Run the new file before it replaces the old one."""
    environment = {"CNI_COMMAND": "VERSION"}
    try:
        done = subprocess.run(
            [path], env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=True
        )
        works = "supportedVersions" in json.loads(done.stdout)
    except PermissionError:
        raise StartRefused(f"{path.parent}: execution denied: is it mounted noexec?") from None
    except (subprocess.SubprocessError, ValueError):
        works = False
    if not works:
        raise StartRefused(f"{path.parent}: the plugin written there does not run")
