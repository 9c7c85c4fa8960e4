"""Transport of one request to the API and its answer back."""

import asyncio
import os
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Protocol

import aiohttp
import yarl

from qingcloud_cni.cloud.access import Access
from qingcloud_cni.cloud.network import HostResolver, tls_context
from qingcloud_cni.core.errors import CloudUnreachable, OutcomeUnknown, is_shortage

_MAX_ANSWER = 16 * 1024 * 1024  # bytes; a page of 100 NICs has about 40 KB
_MAX_CONNECTIONS = 16


class Transport(Protocol):
    """One request, one answer; nothing is sent twice."""

    async def send(self, method: str, target: str, body: bytes, timeout: float) -> tuple[int, str, bytes]:  # noqa: ASYNC109
        """Return status, content type and body of the answer, within *timeout* seconds.

        CloudUnreachable if the request was certainly not sent, OutcomeUnknown for every other loss. Their messages do
        not contain the target, which has key and signature.
        """

    async def close(self) -> None: ...


class AioTransport:
    """A Transport over TCP and TLS, through the environment's proxy if there is one.

    Every request has its own connection: calls are few, and on a reused connection that the cloud has closed the
    outcome of a write would be unknown.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._resolver = HostResolver()
        self._session: aiohttp.ClientSession | None = None

    async def send(self, method: str, target: str, body: bytes, timeout: float) -> tuple[int, str, bytes]:  # noqa: ASYNC109
        url = yarl.URL(self._access.endpoint + target, encoded=True)
        progress = SimpleNamespace(connected=False)
        limits = aiohttp.ClientTimeout(total=timeout, connect=min(self._access.connection_timeout, timeout))
        reason = ""
        try:
            if self._session is None:
                self._session = self._open()
            async with self._session.request(
                method,
                url,
                data=body or None,
                allow_redirects=False,
                timeout=limits,
                proxy=self._access.proxy_url,  # trust_env would add the passwords of ~/.netrc
                trace_request_ctx=progress,
                middlewares=(_only_once,),
            ) as answer:
                content = await _read(answer)
                return answer.status, answer.headers.get("Content-Type", ""), content
        except _BrokenOff as err:
            reason = str(err)
        except Exception as err:
            if not (isinstance(err, aiohttp.ClientError | OSError) or is_shortage(err)):
                raise
            is_late = isinstance(err, TimeoutError) and not progress.connected
            names = ", ".join(self._resolver.pending) if is_late else ""
            reason = f"the name {names} is not resolved in time" if names else _reason(err, timeout)
        # Outside of the handler, so that the new error does not refer to aiohttp's, which may hold the signed URL.
        if progress.connected:
            raise OutcomeUnknown(f"{self._access.route}: {reason}", action="")
        raise CloudUnreachable(f"{self._access.route} cannot be reached: {reason}", action="")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_note_connection)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                force_close=True,
                limit=_MAX_CONNECTIONS,
                resolver=self._resolver,
                ssl=tls_context(self._access.ca_file) if self._access.protocol == "https" else True,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "qingcloud-cni"},
            trace_configs=[trace],
        )


class _BrokenOff(Exception):
    """The connection ended after the request was sent."""


async def _only_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from retrying a GET whose connection breaks: in this API a GET may be a write."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as err:
        reason = _reason(err, 0)
    raise _BrokenOff(reason)


async def _note_connection(
    _session: aiohttp.ClientSession, trace: SimpleNamespace, _params: aiohttp.TraceConnectionCreateEndParams
) -> None:
    trace.trace_request_ctx.connected = True


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in answer.content.iter_any():
        content += chunk
        if len(content) > _MAX_ANSWER:
            raise _BrokenOff(f"the answer is larger than {_MAX_ANSWER} bytes")
    return bytes(content)


_WORDS: tuple[tuple[type[BaseException], Callable[[float], str]], ...] = (
    (aiohttp.ConnectionTimeoutError, lambda _: "no connection in time"),
    (asyncio.TimeoutError, lambda seconds: f"no answer within {seconds:g} s"),
    (aiohttp.ServerDisconnectedError, lambda _: "the connection was closed before an answer came"),
    (aiohttp.ClientPayloadError, lambda _: "the answer broke off"),
    (aiohttp.ClientResponseError, lambda _: "the answer is not HTTP"),
)


_UNKNOWN_ISSUER = frozenset({18, 19, 20, 21})  # of OpenSSL's X509_V_ERR codes
_TLS_ALERT = re.compile(r"\[SSL: ([A-Z0-9_]+)\]")  # how an OSError of ssl begins; its errno is OpenSSL's own


def _reason(err: BaseException, timeout: float) -> str:
    if isinstance(err, aiohttp.ClientConnectorCertificateError):
        refusal = err.certificate_error
        detail = getattr(refusal, "verify_message", "") or "it does not fit the host"
        is_unknown = getattr(refusal, "verify_code", 0) in _UNKNOWN_ISSUER
        advice = "; name its CA with ca_file in the access file, or SSL_CERT_FILE" if is_unknown else ""
        return f"its certificate is not accepted: {detail}{advice}"
    if isinstance(err, aiohttp.ClientConnectorDNSError):
        return f"the name {err.host} cannot be resolved: {err.os_error.strerror or err.os_error}"
    if isinstance(err, aiohttp.ClientHttpProxyError):
        return f"the proxy answered {err.status} to CONNECT"
    if isinstance(err, OSError) and (alert := _TLS_ALERT.search(str(err))):
        return f"TLS failed: {alert[1].replace('_', ' ').lower()}"
    for kind, words in _WORDS:
        if isinstance(err, kind):
            return words(timeout)
    if isinstance(err, OSError) and err.errno:
        return os.strerror(err.errno)
    return type(err).__name__
