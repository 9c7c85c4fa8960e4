"""Spooled DELs, as the plugin writes them."""

import json
from pathlib import Path
from typing import Any

from qingcloud_cni.core.cni.spool import file_name
from qingcloud_cni.core.nics.model import AttachmentKey


def keep(directory: Path, key: AttachmentKey, uptime: float, boot: str = "boot-1", **fields: Any) -> Path:
    """Write the file of a DEL of that time and boot; *fields* are added to its fields or replace them."""
    directory.mkdir(mode=0o700, exist_ok=True)
    content = {
        "address": "127.0.0.1:31080",
        "instanceID": "",
        "network": key.network,
        "containerID": key.container_id,
        "ifname": key.ifname,
        "bootID": boot,
        "uptime": uptime,
        "request": {"command": "DEL"},
    }
    path = directory / file_name(key)
    draft = directory / f".{path.name}"
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(content | fields))
    return draft.replace(path)
