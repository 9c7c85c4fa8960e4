"""A container image made here, of one program: Debian's statically linked busybox. No registry is asked."""

import hashlib
import io
import json
import platform
import shutil
import tarfile
from pathlib import Path

APPLETS = ("cat", "ip", "ping", "sh", "sleep")
# Waits, and ends at once when it is asked to: a pause container, and all others.
COMMAND = ("/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(path: Path, *names: str) -> None:
    """An archive as `docker save` writes it, of an image that bears these *names*."""
    layer = _layer()
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Cmd": COMMAND, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": names, "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _file(archive, "layer.tar", layer)
        _file(archive, "config.json", json.dumps(config).encode())
        _file(archive, "manifest.json", json.dumps(manifest).encode())


def _layer() -> bytes:
    program = shutil.which("busybox")
    assert program is not None, "busybox is not installed: Debian's package busybox-static has it"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(folder)
        _file(layer, "bin/busybox", Path(program).read_bytes(), mode=0o755)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
    return buffer.getvalue()


def _file(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))
