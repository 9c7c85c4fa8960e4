"""Settings: which source decides, what each kind of value accepts, and in which words the rest is refused."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qingcloud_cni.agent.settings import config_file
from qingcloud_cni.agent.settings.config_file import find_config, find_configs, read_config
from qingcloud_cni.agent.settings.resolution import (
    Given,
    Resolved,
    check_vxnets,
    known_instance_id,
    read_boot_id,
    read_instance_id,
    resolve,
)
from qingcloud_cni.agent.settings.settings import BY_KEY, SETTINGS, VXNET_PLACEHOLDER, Setting, Settings
from qingcloud_cni.agent.settings.values import ADDRESS, FLAG, PATH, SECONDS, TEXTS, WHOLE, Address, ValueKind
from qingcloud_cni.core.errors import StartRefused, exit_status
from qingcloud_cni.core.pool.pool_state import PoolPolicy

NONE: Mapping[str, Any] = {}
SAMPLES: dict[str, tuple[str, str, str, str]] = {  # file, environment, flag; and one that is refused
    "QYAccessFilePath": ("/a", "/b", "/c", " "),
    "bindaddr": ("127.0.0.1:1", "127.0.0.1:2", "[::1]:3", "localhost:31080"),
    "gatewayns": ("gw1", "gw2", "gw3", "gw_1"),
    "iface": ("ens1", "ens2", "ens3", "a/b"),
    "policy": ("Random", "roundrotate", "FAILROTATE", "Best"),
    "vxnet": ("vxnet-1", "vxnet-2,vxnet-3", "vxnet-4", ","),
    "zone": ("sh1a", "ap1", "gd2", "PEK3A"),
    "loglevel": ("debug", "warn", "ERROR", "verbose"),
    "min-idle": ("1", "2", "0", "-1"),
    "max-idle": ("9", "10", "11", "many"),
    "idle-ttl": ("1s", "2m", "3h", "soon"),
    "max-nics": ("10", "20", "30", "1.5"),
    "instance-nic-limit": ("10", "20", "30", "x"),
    "cooldown": ("1", "500ms", "1d", "-1s"),
    "cooldown-min": ("1", "2", "3", "1w"),
    "api-budget": ("10", "20", "30", "many"),
    "nic-name-prefix": ("a", "b", "c-1", "a_b"),
    "metrics-bind": ("127.0.0.1:1", "off", "BindAddr", "on"),
    "instance-id": ("i-1", "i-2", "i-3", "x-1"),
    "instance-id-file": ("/a", "/b", "/c", ""),
    "boot-id-file": ("/a", "/b", "/c", ""),
    "state-dir": ("/a", "/b", "/c", ""),
    "run-dir": ("/a", "/b", "/c", ""),
    "duplicate-probe": ("false", "yes", "off", "maybe"),
    "allow-readable-access-file": ("true", "no", "on", "maybe"),
    "simulator-netns": ("/a", "/b,/c", "/d", ","),
}
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)


def resolved(
    flags: Mapping[str, object] = NONE, environment: Mapping[str, str] = NONE, file: Mapping[str, object] = NONE,
    *, access_zone: str = "",
) -> Resolved:  # fmt: skip
    given = Given(access_zone, "/a/client.yaml") if access_zone else None
    return resolve(flags, environment, file, "QingAgent.yaml", access_zone=given)


def value(given: Resolved, setting: Setting) -> object:
    return getattr(given.settings, setting.field)


def refusal(*sources: Mapping[str, Any], access_zone: str = "") -> str:
    with pytest.raises(StartRefused) as refused:
        resolved(*sources, access_zone=access_zone)
    assert exit_status(refused.value) == 2
    return str(refused.value)


# --- sources -----------------------------------------------------------------------------------------


def test_the_seeds_settings_come_first_in_its_spelling_with_its_defaults() -> None:
    assert [(s.name, s.default) for s in SETTINGS[:8]] == [
        ("QYAccessFilePath", "/etc/qingcloud/client.yaml"),
        ("bindaddr", "0.0.0.0:31080"),
        ("gatewayns", "hostnic"),
        ("iface", "eth0"),
        ("policy", "FailRotate"),
        ("vxnet", "vxnet-xxxxxxx"),
        ("zone", "pek3a"),
        ("loglevel", "info"),
    ]


def test_defaults() -> None:
    given = resolved()
    assert set(given.sources.values()) == {"default"}
    assert set(given.sources) == {s.name for s in SETTINGS}
    settings = given.settings
    assert settings.pool == PoolPolicy()
    assert (settings.bindaddr, settings.vxnet) == (Address("0.0.0.0", 31080), (VXNET_PLACEHOLDER,))
    assert settings.database == Path("/var/lib/qingcloud-cni/agent.db")
    assert settings.socket == Path("/run/qingcloud-cni/agent.sock")
    assert settings.token_file == Path("/run/qingcloud-cni/token")
    assert settings.instance_id == ""
    assert settings.allow_readable_access_file is False


@pytest.mark.parametrize("given", [False, "off", "OFF"])
def test_metrics_can_be_off_as_formats_write_it(given: object) -> None:
    """YAML, like JSON's false, reads off as a boolean."""
    assert resolved(file={"metrics-bind": given}).settings.metrics_bind == "off"


def test_every_setting_has_samples_and_a_variable() -> None:
    assert set(SAMPLES) == {s.name for s in SETTINGS}
    assert BY_KEY["min-idle"].variable == "QINGAGENT_MIN_IDLE"
    assert BY_KEY["qyaccessfilepath"].variable == "QINGAGENT_QYACCESSFILEPATH"


@each_setting
def test_flag_before_environment_before_file_before_default(setting: Setting) -> None:
    in_file, in_environment, in_flag, _ = SAMPLES[setting.name]
    flags, environment, file = (
        {setting.name.lower(): in_flag}, {setting.variable: in_environment}, {setting.name.lower(): in_file}
    )  # fmt: skip
    seen = [resolved(), resolved({}, {}, file), resolved({}, environment, file), resolved(flags, environment, file)]
    sources = ["default", "QingAgent.yaml", setting.variable, f"--{setting.name}"]
    assert [s.sources[setting.name] for s in seen] == sources
    if setting.default != "":
        assert value(seen[0], setting) == setting.kind.parse(setting.default)
    assert [value(s, setting) for s in seen[1:]] == [
        setting.kind.parse(t) for t in (in_file, in_environment, in_flag)
    ]
    others = [s for s in SETTINGS if s is not setting]
    assert all(value(seen[3], s) == value(seen[0], s) for s in others)


@pytest.mark.defect("ancestor-5")
@each_setting
def test_a_refusal_names_source_key_value_and_what_is_wanted(setting: Setting) -> None:
    bad = SAMPLES[setting.name][3]
    words = f"{bad!r}: rejected: expected {setting.kind.expected}"
    key = setting.name.lower()
    assert refusal({key: bad}) == f"--{setting.name} {words}"
    assert refusal({}, {}, {key: bad}) == f"QingAgent.yaml: {setting.name} {words}"
    if bad:
        assert refusal({}, {setting.variable: bad}) == f"{setting.variable} {words}"


def test_an_empty_variable_or_null_in_the_file_is_not_given() -> None:
    given = resolved({}, {"QINGAGENT_ZONE": ""}, {"zone": None, "vxnet": None})
    assert given == resolved()


@pytest.mark.defect("ancestor-7")
def test_the_zone_comes_from_the_access_file_only_where_nobody_gives_one() -> None:
    given = resolved(access_zone="sh1a")
    assert (given.settings.zone, given.sources["zone"]) == ("sh1a", "/a/client.yaml")
    assert resolved({}, {}, {"zone": "gd2"}, access_zone="sh1a").settings.zone == "gd2"
    assert resolved({}, {"QINGAGENT_ZONE": "ap1"}, access_zone="sh1a").settings.zone == "ap1"
    assert refusal(access_zone="SH1A") == (
        "/a/client.yaml: zone 'SH1A': rejected: expected a zone in lower case, such as pek3a"
    )


def test_variables_of_kubernetes_are_ignored() -> None:
    environment = {"QINGAGENT_SERVICE_HOST": "10.96.0.7", "QINGAGENT_PORT": "tcp://10.96.0.7:80", "QINGAGENT_": "x"}
    assert resolved({}, environment) == resolved()


def test_an_unknown_key_tells_which_are_known() -> None:
    said = refusal({}, {}, {"vxnets": "vxnet-1"})
    assert said.startswith("QingAgent.yaml: unknown key 'vxnets'; known keys: QYAccessFilePath, bindaddr,")
    assert all(s.name in said for s in SETTINGS)


# --- kinds -------------------------------------------------------------------------------------------


def is_refused(kind: ValueKind[Any], given: object) -> bool:
    try:
        kind.parse(given)
    except ValueError:  # its words are the kind's
        return True
    return False


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("10m", 600), ("1.5h", 5400), ("2d", 172800), ("500ms", 0.5), ("130", 130), (7, 7), (0.25, 0.25),
     (" 5 S ", 5), ("0", 0)],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    assert SECONDS.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1", "1 0", "1w", "1m30s", "nan", "inf", "٣", True, None, [1], "9" * 400])
def test_refused_durations(text: object) -> None:
    assert is_refused(SECONDS, text)


@pytest.mark.parametrize(("text", "number"), [("0", 0), (" 63 ", 63), (7, 7), ("007", 7)])
def test_whole_numbers(text: object, number: int) -> None:
    assert WHOLE.parse(text) == number


@pytest.mark.parametrize("text", ["", "-1", -1, "1.0", 1.0, True, None, "one", "1_000", "²", "٣", "9" * 5000])
def test_refused_whole_numbers(text: object) -> None:
    assert is_refused(WHOLE, text)


@pytest.mark.parametrize(
    ("text", "flag"),
    [("true", True), ("YES", True), ("on", True), ("1", True), (1, True), (True, True), ("False", False),
     ("no", False), ("off", False), (0, False), (False, False)],
)  # fmt: skip
def test_flags(text: object, flag: bool) -> None:
    assert FLAG.parse(text) is flag


@pytest.mark.parametrize("text", ["", "2", 2, None, "y", []])
def test_refused_flags(text: object) -> None:
    assert is_refused(FLAG, text)


@pytest.mark.parametrize(
    ("text", "texts"),
    [("a", ("a",)), ("a, b,,c", ("a", "b", "c")), (["a", "b,c"], ("a", "b", "c")), (("b", "a", "b"), ("b", "a")),
     ([7], ("7",))],
)  # fmt: skip
def test_lists_split_on_commas_keep_their_order_and_hold_nothing_twice(text: object, texts: tuple[str, ...]) -> None:
    assert TEXTS.parse(text) == texts


@pytest.mark.parametrize("text", ["", ",", [], [""], [["a"]], None, True, {"a": 1}])
def test_refused_lists(text: object) -> None:
    assert is_refused(TEXTS, text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("0.0.0.0:31080", "0.0.0.0:31080"), ("[::1]:80", "[::1]:80"), ("127.0.0.1:65535", "127.0.0.1:65535")],
)
def test_addresses(text: str, shown: str) -> None:
    assert str(ADDRESS.parse(text)) == shown


@pytest.mark.parametrize(
    "text", ["", "1.2.3.4", "1.2.3.4:0", "1.2.3.4:65536", "host:80", ":80", "1.2.3.4:x", "1.2.3.4:٣", 80, "1:-1"]
)
def test_refused_addresses(text: object) -> None:
    assert is_refused(ADDRESS, text)


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PATH.parse("a/b") == tmp_path / "a" / "b"
    assert PATH.parse("/a") == Path("/a")
    assert all(is_refused(PATH, bad) for bad in ("", None, True, "a\0b"))


odd_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()


@given(st.sampled_from(SETTINGS), odd_values | st.lists(odd_values, max_size=3))
def test_any_value_of_a_file_is_taken_or_refused_in_one_sentence(setting: Setting, odd: object) -> None:
    said = ""
    try:
        resolved({}, {}, {setting.name.lower(): odd})
    except StartRefused as err:
        said = str(err)
    assert not said or setting.name in said or setting.field in said


# --- values that belong together ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"min-idle": "9"}, "max-idle 8 (QingAgent.yaml) is below min-idle 9 (--min-idle); raise it"),
        ({"max-nics": "2"}, "max-nics 2 (--max-nics) is below min-idle 3 (default); raise it or lower min-idle"),
        ({"max-nics": "0", "min-idle": "0"}, "max-nics 0 (--max-nics) leaves no NIC for containers; raise it"),
        ({"api-budget": "0"}, "api-budget 0 (--api-budget) allows no call of the cloud; raise it"),
        ({"gatewayns": "qingcni"}, "gatewayns qingcni (--gatewayns) equals nic-name-prefix qingcni (default);"),
        ({"gatewayns": "eth0"}, "gatewayns eth0 (--gatewayns) equals iface eth0 (default); a gateway NIC needs"),
        ({"run-dir": "/" + "x" * 100}, "(--run-dir) is too long for a socket in it; choose a shorter --run-dir"),
        ({"run-dir": "/" + "ä" * 50}, "is too long for a socket in it; choose a shorter --run-dir"),
    ],
)
def test_values_that_do_not_fit_together_are_named_with_who_gave_them(flags: dict[str, str], says: str) -> None:
    assert says in refusal(flags, {}, {"max-idle": "8"})


def test_the_longest_run_dir_leaves_room_for_a_socket() -> None:
    assert len(str(resolved({"run-dir": "/" + "x" * 95}).settings.socket)) == 107


def test_settings_follow_the_table() -> None:
    assert [f.name for f in fields(Settings)] == [s.field for s in SETTINGS]
    assert all(s.help and s.kind.expected for s in SETTINGS)


# --- instance id and vxnets --------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(resolved().settings, instance_id_file=tmp_path / "instance-id", boot_id_file=tmp_path / "boot-id")


def test_the_instance_id_is_read_and_stripped(settings: Settings) -> None:
    settings.instance_id_file.write_text("\n i-1234abcd \n")
    assert read_instance_id(settings) == "i-1234abcd"


def test_a_given_instance_id_needs_no_file(settings: Settings) -> None:
    assert read_instance_id(replace(settings, instance_id="i-flag")) == "i-flag"


@pytest.mark.parametrize("content", [b"", b"i-", b"I-1", b"i-1 i-2", b"i-1\ni-2", b"\xff\xfe", b"<html>" * 99])
def test_a_file_that_holds_no_instance_id_is_refused(settings: Settings, content: bytes) -> None:
    settings.instance_id_file.write_bytes(content)
    with pytest.raises(StartRefused, match=r"holds '.*': expected an instance id such as i-1234abcd") as refused:
        read_instance_id(settings)
    assert len(str(refused.value)) < 250 + len(str(settings.instance_id_file))


def test_an_instance_id_file_that_cannot_be_read_is_refused(settings: Settings, tmp_path: Path) -> None:
    for path, why in ((settings.instance_id_file, "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(StartRefused, match=f"read failed: {why}; write this instance's id into it, or set"):
            read_instance_id(replace(settings, instance_id_file=path))


def test_an_instance_id_may_be_left_out_where_nothing_names_a_file(settings: Settings, tmp_path: Path) -> None:
    missing = replace(resolved(), settings=settings)
    assert known_instance_id(missing) == ""
    with pytest.raises(StartRefused, match="No such file"):
        known_instance_id(resolved({"instance-id-file": str(tmp_path / "nowhere")}))
    settings.instance_id_file.write_text("i-1234abcd")
    assert known_instance_id(missing) == "i-1234abcd"
    assert known_instance_id(resolved({"instance-id": "i-flag"})) == "i-flag"


def test_the_boot_id_is_the_kernels_or_that_of_a_file(settings: Settings) -> None:
    kernels = Path("/proc/sys/kernel/random/boot_id")
    assert read_boot_id(resolved().settings) == kernels.read_text().strip()
    settings.boot_id_file.write_text("first boot\n".replace(" ", "-"))
    assert read_boot_id(settings) == "first-boot"


@pytest.mark.parametrize("content", [b"", b"\n", b"a b", b"a\nb", b"\xff", b"a" * 101])
def test_a_file_that_holds_no_boot_id_is_refused(settings: Settings, content: bytes) -> None:
    settings.boot_id_file.write_bytes(content)
    with pytest.raises(StartRefused, match=r"boot id file \S+ holds '.*': expected one word"):
        read_boot_id(settings)


def test_a_boot_id_file_that_cannot_be_read_is_refused(settings: Settings) -> None:
    with pytest.raises(StartRefused, match="No such file or directory; set --boot-id-file"):
        read_boot_id(settings)


def test_the_vxnet_placeholder_is_refused_where_it_stands() -> None:
    words = "vxnet-xxxxxxx is the placeholder of the documentation; set your own with --vxnet"
    for settings, where in (
        (resolved(), "vxnet"),
        (resolved({"vxnet": f"vxnet-1,{VXNET_PLACEHOLDER}"}), "--vxnet"),
        (resolved({}, {"QINGAGENT_VXNET": VXNET_PLACEHOLDER}), "QINGAGENT_VXNET"),
        (resolved({}, {}, {"vxnet": VXNET_PLACEHOLDER}), "QingAgent.yaml: vxnet"),
    ):
        with pytest.raises(StartRefused) as refused:
            check_vxnets(settings)
        assert str(refused.value) == f"{where} {words}"


@pytest.mark.parametrize("vxnet", ["vxnet", "vxnet-", "VXNET-1", "vxnet-1 vxnet-2", "eth0"])
def test_other_things_are_no_vxnets(vxnet: str) -> None:
    with pytest.raises(StartRefused) as refused:
        check_vxnets(resolved({}, {}, {"vxnet": ["vxnet-1", vxnet]}))
    assert str(refused.value) == f"QingAgent.yaml: vxnet {vxnet!r}: rejected: expected ids such as vxnet-1234abc"


def test_vxnets_pass() -> None:
    settings = resolved({"vxnet": "vxnet-1,vxnet-2abc"})
    check_vxnets(settings)
    assert settings.settings.vxnet == ("vxnet-1", "vxnet-2abc")


# --- the file ----------------------------------------------------------------------------------------

SEED_FILE = "QYAccessFilePath: '/etc/qingcloud/client.yaml'\nvxnet: 'vxnet-1'\niface: 'eth0'\nloglevel: 'debug'\n"


def written(directory: Path, name: str, text: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_the_seeds_file(tmp_path: Path) -> None:
    keys = read_config(written(tmp_path, "QingAgent.yaml", SEED_FILE))
    given = resolved({}, {}, keys)
    assert (given.settings.vxnet, given.settings.loglevel) == (("vxnet-1",), "debug")


def test_numbers_booleans_and_lists_need_no_quotes(tmp_path: Path) -> None:
    text = "min-idle: 2\ncooldown: 1.5\nallow-readable-access-file: yes\nvxnet: [vxnet-1, 'vxnet-2,vxnet-3']\n"
    settings = resolved({}, {}, read_config(written(tmp_path, "a.yaml", text))).settings
    assert (settings.min_idle, settings.cooldown, settings.allow_readable_access_file) == (2, 1.5, True)
    assert settings.vxnet == ("vxnet-1", "vxnet-2", "vxnet-3")


def test_the_file_is_found_in_the_working_directory_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = tmp_path / "here", tmp_path / "etc"
    here.mkdir()
    there.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(config_file, "DIRECTORIES", (Path(), there))
    assert find_config() is None
    in_etc = written(there, "QingAgent.yaml", "zone: a")
    assert find_config() == in_etc
    written(here, "QingAgent.json", "{}")
    assert find_config() == Path("QingAgent.json")
    written(here, "QingAgent.yaml", "zone: b")
    assert find_config() == Path("QingAgent.yaml")
    assert list(find_configs()) == [Path("QingAgent.yaml"), Path("QingAgent.json"), in_etc]


def test_a_link_to_nowhere_is_found_and_refused_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config_file, "DIRECTORIES", (Path(),))
    Path("QingAgent.yaml").symlink_to("nowhere")
    written(tmp_path, "QingAgent.yml", "zone: a")
    found = find_config()
    assert found is not None
    with pytest.raises(StartRefused, match=r"QingAgent\.yaml: read failed: No such file or directory"):
        read_config(found)
