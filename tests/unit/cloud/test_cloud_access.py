"""The access file: what is read, and what is refused in which words."""

from pathlib import Path

import pytest

from qingcloud_cni.cloud.access import Access, load_access
from qingcloud_cni.core.errors import StartRefused

KEYS = "qy_access_key_id: THEKEYID\nqy_secret_access_key: THESECRET\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "client.yaml"
    file.touch(mode=0o600)
    return file


def load(path: Path, text: str | bytes) -> Access:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_access(path, allow_readable=False)


def test_defaults(path: Path) -> None:
    access = load(path, KEYS)
    assert (access.key_id, access.secret) == ("THEKEYID", "THESECRET")
    assert (access.endpoint, access.uri) == ("https://api.qingcloud.com:443", "/iaas")
    assert (access.zone, access.connection_retries, access.connection_timeout) == ("", 3, 30.0)
    assert access.unknown == ()


def test_every_key(path: Path) -> None:
    text = KEYS + (
        "zone: sh1a\nhost: 10.0.0.1\nport: '7777'\nprotocol: HTTP\nuri: iaas//\nconnection_retries: 0\n"
        "connection_timeout: 5\nlog_level: warn\n12: x\nlog-level: warn\n"
    )
    access = load(path, text)
    assert (access.zone, access.endpoint, access.uri) == ("sh1a", "http://10.0.0.1:7777", "/iaas/")
    assert (access.connection_retries, access.connection_timeout) == (0, 5.0)
    assert access.unknown == ("12", "log-level")


def test_every_key_of_the_official_clients_is_known(path: Path) -> None:
    """The files that the Go SDK writes, and those that the command line client and its library take."""
    text = KEYS + (
        "zone: pek3a\nhost: api.qingcloud.com\nport: 443\nprotocol: https\nuri: /iaas\nconnection_retries: 3\n"
        "connection_timeout: 30\nlog_level: warn\ncredential_proxy_protocol: http\n"
        "credential_proxy_host: 169.254.169.254\ncredential_proxy_port: 80\n"
        "credential_proxy_uri: /latest/meta-data/security-credentials\nretry_time: 2\nhttp_socket_timeout: 60\n"
        "expires:\ndebug: false\n"
    )
    access = load(path, text)
    assert access == load(path, KEYS + "zone: pek3a\n")
    assert access.unknown == ()


def test_values_are_the_text_that_stands_there(path: Path) -> None:
    """A key of digits needs no quotes, and no number is read in octal."""
    text = "qy_access_key_id: 0123\nqy_secret_access_key: 1e5\nport: 0443\nconnection_retries: 010\nzone: no\n"
    access = load(path, text)
    assert (access.key_id, access.secret, access.zone) == ("0123", "1e5", "no")
    assert (access.port, access.connection_retries) == (443, 10)


def test_tabs_separate_and_only_those_that_indent_are_refused(path: Path) -> None:
    access = load(path, KEYS.replace(" ", "\t") + "zone:\tsh1a\t\nport: 7777 \t# of the simulator\n")
    assert (access.secret, access.zone, access.port) == ("THESECRET", "sh1a", 7777)
    with pytest.raises(
        StartRefused, match="line 3, column 1 is malformed; write spaces instead of the tab"
    ) as refused:
        load(path, KEYS + "\tzone: SECRET\n")
    assert "SECRET" not in str(refused.value)


def test_an_ipv6_host_gets_its_brackets(path: Path) -> None:
    assert load(path, KEYS + "host: '::1'\nport: 80\n").endpoint == "https://[::1]:80"
    assert load(path, KEYS + "host: '[::1]'\nport: 80\n").endpoint == "https://[::1]:80"


def test_null_is_absent(path: Path) -> None:
    assert load(path, KEYS + "port:\nzone:\nhost: ~\n") == load(path, KEYS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("qy_access_key_id: ''\nqy_secret_access_key: x\n", "qy_access_key_id is missing or empty"),
        ("qy_access_key_id: x\nqy_secret_access_key:\n", "IAM roles are not supported"),
        ("zone: pek3a\n", "qy_access_key_id is missing or empty"),
        ("qy_access_key_id: [x]\nqy_secret_access_key: x\n", "qy_access_key_id must be a single text"),
        ("qy_access_key_id: x\nqy_secret_access_key: 'a b\tc'\n", "qy_secret_access_key holds characters that no"),
        (KEYS + "qy_secret_access_key: y\n", "qy_secret_access_key is there twice"),
        (KEYS + "port: 0\n", "port must lie between 1 and 65535"),
        (KEYS + "port: yes\n", "port must be a whole number"),
        (KEYS + "port: [1]\n", "port must be a single text"),
        (KEYS + "port: 1_0\n", "port must be a whole number"),
        (KEYS + "port: 99999999999\n", "port must be a whole number"),
        (KEYS + "protocol: ftp\n", "protocol must be https or http"),
        (KEYS + "host: https://api.qingcloud.com\n", "host must be a name or an address alone"),
        (KEYS + "host: a@b\n", "host must be a name or an address alone"),
        (KEYS + "uri: /iaas?x=1\n", "uri must be a plain path"),
        (KEYS + "connection_timeout: 0\n", "connection_timeout must be more than 0"),
        (KEYS + "connection_retries: -1\n", "connection_retries must be a whole number"),
        ("- a\n- b\n", "holds no keys"),
        ("", "holds no keys"),
        ("just words", "holds no keys"),
        ("zone: pek3a\n  bad: [\n", "is not YAML: line 2"),
        (b"zone: \xff\n", "it is not UTF-8"),
        ("date: 2013-99-99\n", "qy_access_key_id is missing"),
        ("x: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("[" * 60_000, "is not YAML"),
        ("#" * 70_000, "larger than 65536 bytes"),
    ],
)
def test_refusals_name_file_and_fault(path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(StartRefused) as refused:
        load(path, text)
    assert str(path) in str(refused.value)
    assert says in str(refused.value)


def test_a_missing_file_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match=r"does not exist: write qy_access_key_id.*--QYAccessFilePath"):
        load_access(tmp_path / "none.yaml", allow_readable=False)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match="cannot be read"):
        load_access(tmp_path, allow_readable=False)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_file_open_to_others_is_refused_unless_allowed(path: Path, mode: int) -> None:
    path.write_text(KEYS)
    path.chmod(mode)
    with pytest.raises(StartRefused, match=rf"mode {mode:04o}\).*chmod 600 .*--allow-readable-access-file"):
        load_access(path, allow_readable=False)
    assert load_access(path, allow_readable=True).secret == "THESECRET"


@pytest.mark.parametrize(
    "text", ["qy_secret_access_key: THESECRET\n  x: [", "qy_secret_access_key: *THESECRET", "a: !THESECRET b"]
)
def test_no_error_quotes_the_file(path: Path, text: str) -> None:
    with pytest.raises(StartRefused) as refused:
        load(path, text)
    assert "THESECRET" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_the_keys_show_in_no_repr(path: Path) -> None:
    shown = repr(load(path, KEYS))
    assert "THESECRET" not in shown
    assert "THEKEYID" not in shown


def test_scrub_takes_keys_and_signatures_out() -> None:
    access = Access("KEY/ID", "SEC+RET")
    text = "GET /iaas?access_key_id=KEY%2FID&signature=abc%3D&x=SEC+RET and SEC%2BRET of KEY/ID"
    assert access.scrub(text) == "GET /iaas?access_key_id=***&signature=***&x=*** and *** of ***"
