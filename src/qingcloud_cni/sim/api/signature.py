"""Verification of request signatures, sharing no code with the real client: an oracle for it.

Rules and vectors: docs/reference/qingcloud-api.md, "Signature".
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, quote

DIGESTS = {"HmacSHA256": hashlib.sha256, "HmacSHA1": hashlib.sha1}
"""Values of signature_method."""


def decode(encoded: str) -> dict[str, str]:
    """Read a query string or form: a bare name is an empty value; the last of equal names counts."""
    return dict(parse_qsl(encoded, keep_blank_values=True))


def canonical(params: Mapping[str, str]) -> str:
    """Write parameters as the documentation signs them: sorted by bytes, percent-encoded, ``%20`` for a space."""
    pairs = sorted((name.encode(), value.encode()) for name, value in params.items() if name != "signature")
    return "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in pairs)


def verify(method: str, path: str, encoded: str, secret: str) -> bool:
    """Whether *encoded*, the query or form as received, has a signature made with *secret*.

    Clients differ in how they encode a space or an empty value, and sign what they send: so the text as received,
    without its signature, counts as well as its canonical form.
    """
    params = decode(encoded)
    digest = DIGESTS.get(params.get("signature_method", ""))
    try:
        given = base64.b64decode(params.get("signature", ""), validate=True)
    except (binascii.Error, ValueError):
        return False
    if digest is None or not given:
        return False
    as_received = "&".join(pair for pair in encoded.split("&") if pair.partition("=")[0] != "signature")
    texts: Iterable[str] = (f"{method}\n{path}\n{text}" for text in (as_received, canonical(params)))
    return any(hmac.compare_digest(hmac.digest(secret.encode(), text.encode(), digest), given) for text in texts)
