"""The QingCloud API: access file, signature, transport and client."""

from qingcloud_cni.cloud.access import Access, load_access
from qingcloud_cni.cloud.calls import Caller, CallOutcome, CallSeen
from qingcloud_cni.cloud.client import Client
from qingcloud_cni.cloud.limiter import Limiter
from qingcloud_cni.cloud.transport import AioTransport

__all__ = ["Access", "AioTransport", "CallOutcome", "CallSeen", "Caller", "Client", "Limiter", "load_access"]
