"""The access file (`client.yaml`): keys and address of the QingCloud API."""

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import yarl

from qingcloud_cni.cloud.network import check_certificates, find_proxy
from qingcloud_cni.core.errors import StartRefused
from qingcloud_cni.core.flat_yaml import YamlFault, read_flat_yaml

_MAX_SIZE = 64 * 1024  # bytes; a real one has about 300
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*\]?")
_NUMBER = re.compile(r"[0-9]{1,9}")
_URI = re.compile(r"[A-Za-z0-9/._~-]+")
_SIGNATURE = re.compile(r"(signature=)[^&\s\"'<>]+")
USED = frozenset(
    {
        "qy_access_key_id", "qy_secret_access_key", "zone", "host", "port", "protocol", "uri",
        "connection_retries", "connection_timeout", "ca_file",
    }
)  # fmt: skip
IGNORED = frozenset(  # keys of the official clients without a meaning here
    {
        "log_level", "debug", "expires", "retry_time", "http_socket_timeout",
        "credential_proxy_protocol", "credential_proxy_host", "credential_proxy_port", "credential_proxy_uri",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Access:
    """The access file and what the environment adds to it, checked. Its repr shows neither key."""

    key_id: str = field(repr=False)
    secret: str = field(repr=False)
    zone: str = ""  # "" if the file has none
    host: str = "api.qingcloud.com"  # an IPv6 address has no brackets
    port: int = 443
    protocol: str = "https"
    uri: str = "/iaas"
    connection_retries: int = 3  # retries of reads; writes are never retried
    connection_timeout: float = 30.0  # seconds to make a connection
    ca_file: str = ""  # certificates to trust instead of the host's
    proxy_url: yarl.URL | None = field(default=None, repr=False)  # of the environment; may have a password
    unknown: tuple[str, ...] = ()  # keys that no client knows

    @property
    def endpoint(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol}://{host}:{self.port}"

    @property
    def proxy(self) -> str:
        """The proxy without user and password; "" if there is none."""
        return str(self.proxy_url.with_user(None)) if self.proxy_url else ""

    @property
    def route(self) -> str:
        """The endpoint and the way there, for messages."""
        return f"{self.endpoint} through the proxy {self.proxy}" if self.proxy_url else self.endpoint

    def scrub(self, text: str) -> str:
        """Mask keys and signatures in *text*, for messages and logs."""
        for secret in (self.secret, self.key_id):
            for form in (secret, quote(secret, safe="")):
                text = text.replace(form, "***")
        return _SIGNATURE.sub(r"\1***", text)


def load_access(path: Path, *, allow_readable: bool) -> Access:
    """Read the access file; StartRefused if it is wrong, without quoting values, which may be secrets.

    *allow_readable* accepts a file that others than its owner may read or change.
    """
    mapping = _mapping(path, _read(path, allow_readable=allow_readable))
    port = _number(path, mapping, "port", 443)
    if port not in range(1, 65536):
        raise StartRefused(f"access file {path}: port must lie between 1 and 65535")
    protocol = _text(path, mapping, "protocol", "https").lower()
    if protocol not in {"https", "http"}:
        raise StartRefused(f"access file {path}: protocol must be https or http")
    host = _text(path, mapping, "host", "api.qingcloud.com")
    if not _HOST.fullmatch(host):
        raise StartRefused(
            f"access file {path}: host must be a name or an address alone; use the keys protocol, port and uri"
        )
    uri = re.sub("/+", "/", "/" + _text(path, mapping, "uri", "/iaas"))
    if not _URI.fullmatch(uri):
        raise StartRefused(f"access file {path}: uri must be a plain path like /iaas")
    timeout = _number(path, mapping, "connection_timeout", 30)
    if timeout <= 0:
        raise StartRefused(f"access file {path}: connection_timeout must be more than 0 seconds")
    ca_file = _text(path, mapping, "ca_file", "")
    if ca_file and not Path(ca_file).is_absolute():
        raise StartRefused(f"access file {path}: ca_file must be an absolute path")
    if ca_file:
        check_certificates(ca_file, f"access file {path}: ca_file")
    elif protocol == "https" and (trusted := os.environ.get("SSL_CERT_FILE")):
        check_certificates(trusted, "environment variable SSL_CERT_FILE:")
    host = host.strip("[]")
    return Access(
        key_id=_key(path, mapping, "qy_access_key_id"),
        secret=_key(path, mapping, "qy_secret_access_key"),
        zone=_text(path, mapping, "zone", ""),
        host=host,
        port=port,
        protocol=protocol,
        uri=uri,
        connection_retries=_number(path, mapping, "connection_retries", 3),
        connection_timeout=float(timeout),
        ca_file=ca_file,
        proxy_url=find_proxy(protocol, host, port),
        unknown=tuple(sorted(mapping.keys() - USED - IGNORED)),
    )


def _read(path: Path, *, allow_readable: bool) -> bytes:
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            if stat.S_ISDIR(info.st_mode):
                raise IsADirectoryError(21, "it is a directory")
            text = file.read(_MAX_SIZE + 1)
    except FileNotFoundError:
        raise StartRefused(
            f"access file {path} does not exist: write qy_access_key_id, qy_secret_access_key and zone into it, "
            "or name another with --QYAccessFilePath"
        ) from None
    except OSError as err:
        raise StartRefused(f"access file {path} cannot be read: {err.strerror}") from err
    mode = stat.S_IMODE(info.st_mode)
    if mode & 0o066 and not allow_readable:
        raise StartRefused(
            f"access file {path} may be read or changed by others than its owner (mode {mode:04o}): "
            f"run `chmod 600 {path}`, or start with --allow-readable-access-file"
        )
    if len(text) > _MAX_SIZE:
        raise StartRefused(f"access file {path} is larger than {_MAX_SIZE} bytes: it is not an access file")
    return text


def _mapping(path: Path, content: bytes) -> dict[str, object]:
    """Return every value as written, as the official clients do: a key may be all digits."""
    fault = ""
    pairs: list[tuple[str, object]] | None = None
    try:
        pairs = read_flat_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        fault = "it is not UTF-8"
    except YamlFault as err:  # the problem's words may quote the file
        fault = "; ".join(part for part in (f"{err.position or 'some line'} is malformed", err.advice) if part)
    if fault:
        raise StartRefused(f"access file {path} is not YAML: {fault}")
    if not pairs:
        raise StartRefused(f"access file {path} holds no keys; write lines like `zone: pek3a`")
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next((key for key in USED if names.count(key) > 1), "")
        if twice:
            raise StartRefused(f"access file {path}: {twice} is there twice; remove one")
    return mapping


def _text(path: Path, mapping: dict[str, object], key: str, default: str) -> str:
    value = mapping.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise StartRefused(f"access file {path}: {key} must be a single text")
    return value.strip() or default


def _key(path: Path, mapping: dict[str, object], key: str) -> str:
    value = _text(path, mapping, key, "")
    if not value:
        raise StartRefused(
            f"access file {path}: {key} is missing or empty; write the key there (IAM roles are not supported)"
        )
    if not value.isascii() or not value.isprintable():
        raise StartRefused(f"access file {path}: {key} holds characters that no key has; copy it again")
    return value


def _number(path: Path, mapping: dict[str, object], key: str, default: int) -> int:
    text = _text(path, mapping, key, str(default))
    if not _NUMBER.fullmatch(text):
        raise StartRefused(f"access file {path}: {key} must be a whole number of 0 or more")
    return int(text)
