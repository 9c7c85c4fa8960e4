"""The signature of QingCloud API requests (version 1, HmacSHA256)."""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from urllib.parse import quote


def canonical(params: Mapping[str, str]) -> str:
    """The query as it is signed and sent: sorted by name, byte by byte; a space is `%20`; an empty value is `k=`."""
    return "&".join(f"{quote(name, safe='')}={quote(params[name], safe='')}" for name in sorted(params))


def signature(secret: str, method: str, path: str, query: str) -> str:
    """Sign a canonical query, in Base64. *path* is the one sent: `/iaas` and `/iaas/` differ."""
    text = f"{method}\n{path}\n{query}"
    return base64.b64encode(hmac.digest(secret.encode(), text.encode(), hashlib.sha256)).decode()


def signed_target(secret: str, path: str, params: Mapping[str, str]) -> str:
    """The request target of a GET. It must go out exactly as it is: encoded anew, it would no longer match."""
    query = canonical(params)
    return f"{path}?{query}&signature={quote(signature(secret, 'GET', path, query), safe='')}"
