"""The simulator verifies the signatures of docs/reference/qingcloud-api.md, and tolerates clients' variants."""

import base64
import hashlib
import hmac
import random
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.sim.api import signature

KEY, SECRET = "QYACCESSKEYIDEXAMPLE", "SECRETACCESSKEY"
SIGNED = "signature_method=HmacSHA256&signature_version=1&"
REQ = "req_id=0123456789abcdef0123456789abcdef&"
STAMP = "time_stamp=2024-01-02T03%3A04%3A05Z"
TWO_NICS = "instance=i-12345678&nics.1=52%3A54%3A00%3A00%3A12%3A34&nics.2=52%3A54%3A00%3A00%3A12%3A35&"

VECTORS = {
    "V1": (
        "GET",
        "/iaas/",
        f"access_key_id={KEY}&action=RunInstances&count=1&image_id=centos64x86a&instance_name=demo&"
        f"instance_type=small_b&login_mode=passwd&login_passwd=QingCloud20130712&{SIGNED}"
        "time_stamp=2013-08-27T14%3A30%3A10Z&version=1&vxnets.1=vxnet-0&zone=pek3a",
        "byjccvWIvAftaq+oublemagH3bYAlDWxxLFAzAsyslw=",
    ),
    "V2": (
        "GET",
        "/iaas/",
        f"access_key_id={KEY}&action=AttachNics&{TWO_NICS}{REQ}{SIGNED}{STAMP}&version=1&zone=pek3a",
        "sroytyhQVDjyiYp3gZWRDQofvwcJ88QFbapIOxXULDA=",
    ),
    "V3": (
        "GET",
        "/iaas/",
        f"access_key_id={KEY}&action=CreateNics&count=2&nic_name=hostnic_i-12345678%20a~b%2A%E4%B8%AD&"
        f"private_ips.1=192.168.1.10&private_ips.2=192.168.1.11&{REQ}{SIGNED}{STAMP}&version=1&"
        "vxnet=vxnet-ytuyg2q&zone=pek3a",
        "BqxJRpUHCYV+Q0f18yD7Ydz3cI96DkaT4ALo3O5iLtY=",
    ),
    "V4": (
        "GET",
        "/iaas",
        f"access_key_id={KEY}&action=AttachNics&{TWO_NICS}{SIGNED}{STAMP}&zone=pek3a",
        "dL/ctrZ3TQmduZ+eWLdZDAfe+ZoYInOzM8mwdJjAPRg=",
    ),
    "V4, bare name": (
        "GET",
        "/iaas",
        f"access_key_id={KEY}&action=DescribeNics&nic_name&{SIGNED}{STAMP}&zone=pek3a",
        "/7P2SQ2+nrMfxW0GcDsi/0b1QuguCZXlxhins8zqPJM=",
    ),
    "V5": (
        "POST",
        "/iaas/",
        f"action=DescribeNics&limit=100&nic_name=a+b~&req_id=x&zone=pek3a&access_key_id={KEY}&"
        f"signature_version=1&version=1&{STAMP}&signature_method=HmacSHA256",
        "C/o+mPK2g1XtTqts2YRMQSs1KLTyG1M0eLJ4W7LdrMQ=",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_accepted_as_sent(name: str) -> None:
    method, path, text, wanted = VECTORS[name]
    assert signature.verify(method, path, f"{text}&signature={quote(wanted, safe='')}", SECRET)


@pytest.mark.parametrize("name", [name for name in VECTORS if name != "V4, bare name"])
def test_a_vector_is_accepted_in_any_order_and_encoded_as_a_form(name: str) -> None:
    method, path, text, wanted = VECTORS[name]
    pairs = text.replace("%20", "+").split("&")
    shuffled = "&".join([f"signature={quote(wanted, safe='')}", *reversed(pairs)])
    assert signature.verify(method, path, shuffled, SECRET)


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_fails_with_another_method_path_secret_or_value(name: str) -> None:
    method, path, text, wanted = VECTORS[name]
    sent = f"{text}&signature={quote(wanted, safe='')}"
    assert not signature.verify("POST" if method == "GET" else "GET", path, sent, SECRET)
    assert not signature.verify(method, path.strip("/"), sent, SECRET)
    assert not signature.verify(method, path, sent, SECRET.lower())
    assert not signature.verify(method, path, sent.replace("zone=pek3a", "zone=pek3b"), SECRET)
    assert not signature.verify(method, path, sent.replace("action=", "action=x"), SECRET)


@pytest.mark.parametrize(
    "given_signature", ["", "&signature=", "&signature=%%%", "&signature=bm90IGl0", "&signature=ä"]
)
def test_a_missing_or_broken_signature_is_refused(given_signature: str) -> None:
    method, path, text, _ = VECTORS["V2"]
    assert not signature.verify(method, path, text + given_signature, SECRET)


def test_sha1_is_accepted_and_an_unknown_method_is_not() -> None:
    def sent(method_name: str, digest: str) -> str:
        text = f"action=DescribeNics&signature_method={method_name}&zone=pek3a"
        made = hmac.new(SECRET.encode(), f"GET\n/iaas\n{text}".encode(), digest).digest()
        return f"{text}&signature={quote(base64.b64encode(made).decode(), safe='')}"

    assert signature.verify("GET", "/iaas", sent("HmacSHA1", "sha1"), SECRET)
    assert not signature.verify("GET", "/iaas", sent("HmacMD5", "md5"), SECRET)


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=12), max_size=6), st.randoms())
def test_any_parameters_in_any_order_verify_by_the_canonical_form(params: dict[str, str], rng: random.Random) -> None:
    params = {**params, "signature_method": "HmacSHA256"}
    params.pop("signature", None)
    names = sorted(params, key=str.encode)
    text = "&".join(f"{quote(n, safe='~')}={quote(params[n], safe='~')}" for n in names)
    made = hmac.new(b"s", f"GET\n/iaas/\n{text}".encode(), hashlib.sha256).digest()
    rng.shuffle(names)
    pairs = [f"{quote(n, safe='')}={quote(params[n], safe='').replace('%20', '+')}" for n in names]
    sent = "&".join([*pairs, f"signature={quote(base64.b64encode(made).decode(), safe='')}"])
    assert signature.verify("GET", "/iaas/", sent, "s")
