"""The signature against the vectors of docs/reference/qingcloud-api.md and of the official clients."""

from urllib.parse import parse_qsl

import pytest

from qingcloud_cni.cloud.calls import canonical, signature, signed_target

KEY, SECRET = "QYACCESSKEYIDEXAMPLE", "SECRETACCESSKEY"
V1 = (
    "access_key_id=QYACCESSKEYIDEXAMPLE&action=RunInstances&count=1&image_id=centos64x86a&instance_name=demo"
    "&instance_type=small_b&login_mode=passwd&login_passwd=QingCloud20130712&signature_method=HmacSHA256"
    "&signature_version=1&time_stamp=2013-08-27T14%3A30%3A10Z&version=1&vxnets.1=vxnet-0&zone=pek3a"
)
V2 = (
    "access_key_id=QYACCESSKEYIDEXAMPLE&action=AttachNics&instance=i-12345678&nics.1=52%3A54%3A00%3A00%3A12%3A34"
    "&nics.2=52%3A54%3A00%3A00%3A12%3A35&req_id=0123456789abcdef0123456789abcdef&signature_method=HmacSHA256"
    "&signature_version=1&time_stamp=2024-01-02T03%3A04%3A05Z&version=1&zone=pek3a"
)
V3 = (
    "access_key_id=QYACCESSKEYIDEXAMPLE&action=CreateNics&count=2&nic_name=hostnic_i-12345678%20a~b%2A%E4%B8%AD"
    "&private_ips.1=192.168.1.10&private_ips.2=192.168.1.11&req_id=0123456789abcdef0123456789abcdef"
    "&signature_method=HmacSHA256&signature_version=1&time_stamp=2024-01-02T03%3A04%3A05Z&version=1"
    "&vxnet=vxnet-ytuyg2q&zone=pek3a"
)
V4 = (
    "access_key_id=QYACCESSKEYIDEXAMPLE&action=AttachNics&instance=i-12345678&nics.1=52%3A54%3A00%3A00%3A12%3A34"
    "&nics.2=52%3A54%3A00%3A00%3A12%3A35&signature_method=HmacSHA256&signature_version=1"
    "&time_stamp=2024-01-02T03%3A04%3A05Z&zone=pek3a"
)


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        pytest.param("/iaas/", V1, "byjccvWIvAftaq+oublemagH3bYAlDWxxLFAzAsyslw=", id="V1"),
        pytest.param("/iaas/", V2, "sroytyhQVDjyiYp3gZWRDQofvwcJ88QFbapIOxXULDA=", id="V2"),
        pytest.param("/iaas/", V3, "BqxJRpUHCYV+Q0f18yD7Ydz3cI96DkaT4ALo3O5iLtY=", id="V3"),
        pytest.param("/iaas", V4, "dL/ctrZ3TQmduZ+eWLdZDAfe+ZoYInOzM8mwdJjAPRg=", id="V4"),
    ],
)
def test_get_vectors(path: str, query: str, expected: str) -> None:
    params = dict(parse_qsl(query, keep_blank_values=True))
    assert canonical(dict(reversed(params.items()))) == query
    assert signature(SECRET, "GET", path, query) == expected


def test_post_vector() -> None:
    params = {
        "action": "DescribeNics", "limit": "100", "nic_name": "a b~", "req_id": "x", "zone": "pek3a",
        "access_key_id": KEY, "signature_version": "1", "version": "1", "time_stamp": "2024-01-02T03:04:05Z",
        "signature_method": "HmacSHA256",
    }  # fmt: skip
    assert signature(SECRET, "POST", "/iaas/", canonical(params)) == "C/o+mPK2g1XtTqts2YRMQSs1KLTyG1M0eLJ4W7LdrMQ="


def test_target_carries_the_signature_last_and_encoded() -> None:
    params = dict(parse_qsl(V3))
    expected = f"/iaas/?{V3}&signature=BqxJRpUHCYV%2BQ0f18yD7Ydz3cI96DkaT4ALo3O5iLtY%3D"
    assert signed_target(SECRET, "/iaas/", params) == expected


def test_indexes_sort_as_bytes_and_empty_values_keep_their_sign() -> None:
    assert canonical({"nics.2": "b", "nics.10": "a", "nics.1": ""}) == "nics.1=&nics.10=a&nics.2=b"
