"""Settings: precedence, values, `-o`, and every refusal."""

import os
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs import codec, policy
from tagfs.errors import SettingRefused
from tagfs.inventories import namespaces_of
from tagfs.resolving import resolve, resolve_sweep, value_of
from tagfs.settings import SETTINGS, MountSettings
from tagfs.values import absolute_source

DEFAULTS = MountSettings("/store", "/mnt")


def resolved(flags: dict[str, str] | None = None, *options: str, **environment: str) -> MountSettings:
    return resolve("/store", "/mnt", flags or {}, options, environment)


def test_defaults_are_those_of_the_store() -> None:
    assert resolved() == DEFAULTS
    assert (DEFAULTS.threshold, DEFAULTS.list_limit) == (policy.DEFAULT_THRESHOLD, policy.DEFAULT_LIST_LIMIT)


def test_every_field_but_the_paths_and_a_device_is_a_setting() -> None:
    assert {setting.field for setting in SETTINGS} == {field.name for field in fields(MountSettings)} - {
        "store",
        "mountpoint",
        "device",
    }


@pytest.mark.parametrize(
    ("flag", "text", "field", "value"),
    [
        ("read-only", "1", "read_only", True),
        ("codec", "gzip", "codec", "gzip"),
        ("storage-compression-threshold", "64", "threshold", 65536),
        ("max-list-size", "1", "list_limit", 1 << 20),
        ("namespace", "a,b-2", "namespaces", frozenset({"a", "b-2"})),
        ("allow-other", "true", "allow_other", True),
        ("make-mountpoint", "true", "make_mountpoint", True),
        ("uid", "0", "uid", 0),
        ("gid", "4294967294", "gid", 4294967294),
        ("wait", "0", "wait", 0.0),
        ("wait", "1.5", "wait", 1.5),
        ("wipe-foreign", "TRUE", "wipe_foreign", True),
        ("log-level", "debug", "log_level", "debug"),
        ("log-format", "json", "log_format", "json"),
        ("background", "1", "background", True),
        ("inventory", "kubernetes", "inventory", ("kubernetes",)),
        ("inventory", "manifests:/a,manifests:b,manifests:/a", "inventory", ("manifests:/a", "manifests:b")),
        ("gc-interval", "0", "gc_interval", 0.0),
        ("gc-interval", "1.5", "gc_interval", 90.0),
    ],
)
def test_a_value_comes_by_flag_by_option_and_by_variable(flag: str, text: str, field: str, value: object) -> None:
    by_flag = resolved({flag: text})
    assert getattr(by_flag, field) == value
    assert resolved({}, **{f"TAGFS_{flag.upper().replace('-', '_')}": text}) == by_flag
    if "," not in text:
        assert resolved({}, f"{flag}={text}") == by_flag
        assert resolved({}, f"{flag.replace('-', '_')}={text}") == by_flag


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.metavar is None], ids=lambda s: s.flag)
def test_a_switch_is_0_or_1_and_nothing_else(setting) -> None:
    for text in ("0", "false", "False"):
        assert getattr(resolved({}, **{setting.variable: text}), setting.field) is False
    for text in ("", "yes", "on", "2", " 1"):
        with pytest.raises(SettingRefused, match=f"{setting.variable}: .*1, 0, true or false"):
            resolved({}, **{setting.variable: text})


def test_a_flag_goes_before_an_option_before_a_variable() -> None:
    assert resolved({"uid": "1"}, "uid=2", TAGFS_UID="3").uid == 1
    assert resolved({}, "uid=2", TAGFS_UID="3").uid == 2
    assert resolved({}, TAGFS_UID="3").uid == 3
    assert resolved({}, "rw", TAGFS_READ_ONLY="1").read_only is False
    assert resolved({"read-only": "1"}, "rw").read_only is True


def test_options_are_split_repeated_and_the_last_one_counts() -> None:
    settings = resolved({}, "ro,allow_other", "uid=5,gid=6,uid=7", "namespace=a,namespace=b")
    assert settings.read_only
    assert settings.allow_other
    assert (settings.uid, settings.gid) == (7, 6)
    assert settings.namespaces == frozenset({"a", "b"})
    assert resolved({}, "ro,rw").read_only is False


def test_options_that_mount_gives_to_every_file_system_are_ignored() -> None:
    generic = (
        "rw,defaults,auto,noauto,user,user=bob,users,nouser,owner,group,nofail,_netdev,exec,noexec,suid,nosuid,dev,nodev,"
        "atime,noatime,relatime,norelatime,strictatime,lazytime,sync,async,x-systemd.automount,x-systemd.requires=/a,"
        "X-mount.mkdir,comment=of a person,,"
    )
    assert resolved({}, generic) == DEFAULTS


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("remount", "remount: there is no such option"),
        ("loop", "loop: there is no such option"),
        ("ro=1", "ro: there is no such option"),
        ("uid", "it needs a value, uid=UID"),
        ("uid=", "-o uid: ''"),
        ("read-only=maybe", "-o read-only: 'maybe'"),
        ("codec=lz4", "one of auto, gzip, zstd"),
    ],
)
def test_any_other_option_is_an_error(option: str, told: str) -> None:
    with pytest.raises(SettingRefused, match=told):
        resolved({}, option)


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("storage-compression-threshold", "0"),
        ("storage-compression-threshold", "-1"),
        ("storage-compression-threshold", "1.5"),
        ("storage-compression-threshold", "64KiB"),
        ("max-list-size", "0"),
        ("max-list-size", "٣"),
        ("codec", "plain"),
        ("codec", ""),
        ("namespace", ""),
        ("namespace", "a,"),
        ("namespace", "Team"),
        ("namespace", "../etc"),
        ("uid", "root"),
        ("uid", "-1"),
        ("gid", "4294967295"),
        ("wait", "-1"),
        ("wait", "nan"),
        ("wait", "inf"),
        ("wait", "soon"),
        ("log-level", "loud"),
        ("log-format", "xml"),
        ("inventory", ""),
        ("inventory", "kubernetes,manifests:/a"),
        ("inventory", "manifests:"),
        ("inventory", "/a"),
        ("manifests-ignore", ""),
        ("manifests-include", "a,,b"),
        ("gc-interval", "-1"),
        ("gc-interval", "inf"),
        ("watch-all-namespaces", "maybe"),
        ("watch-namespace", "A"),
        ("watch-label-selector", " "),
        ("kube-context", ""),
        ("kube-api-qps", "nan"),
        ("kube-api-burst", "0"),
        ("sweep-max-percent", "101"),
        ("sweep-max-percent", "50%"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_its_flag(flag: str, text: str) -> None:
    with pytest.raises(SettingRefused, match=f"^--{flag}: "):
        resolved({flag: text})


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("codec", "auto"),
        ("codec", "zstd"),
        ("storage-compression-threshold", "4"),
        ("wipe-foreign", "1"),
        ("inventory", "kubernetes"),
        ("gc-interval", "0"),
    ],
)
def test_a_flag_without_effect_on_a_read_only_mount_is_refused(flag: str, text: str) -> None:
    for settings in ({"read-only": "1", flag: text}, {flag: text}):
        with pytest.raises(SettingRefused, match=f"--{flag} has no effect"):
            resolved(settings, "ro")
    variable = f"TAGFS_{flag.upper().replace('-', '_')}"
    with pytest.raises(SettingRefused, match=f"{variable} has no effect"):
        resolved({"read-only": "1"}, **{variable: text})


OF_MANIFESTS = [
    ("manifests-include", "clusters/prod/**,*.yaml", "manifests_include", ("clusters/prod/**", "*.yaml")),
    ("manifests-ignore", "templates", "manifests_ignore", ("templates",)),
]
OF_CLUSTERS = [
    ("watch-all-namespaces", "false", "watch_all_namespaces", False),
    ("watch-namespace", "a,b", "watch_namespaces", frozenset({"a", "b"})),
    ("watch-label-selector", "sharding.fluxcd.io/key in (a,b),!x", "watch_label_selector",
     "sharding.fluxcd.io/key in (a,b),!x"),
    ("kube-context", "prod", "kube_context", "prod"),
    ("kube-api-qps", "-1", "kube_qps", -1.0),
    ("kube-api-burst", "5", "kube_burst", 5),
]  # fmt: skip
OF_BOTH = [
    ("sweep-max-percent", "0", "max_percent", 0),
    ("sweep-allow-empty-inventory", "1", "allow_empty_inventory", True),
    ("sweep-allow-mass-deletion", "1", "allow_mass_deletion", True),
    ("sweep-suspend", "1", "sweep_suspend", True),
]


@pytest.mark.parametrize(("flag", "text", "field", "value"), [*OF_MANIFESTS, *OF_CLUSTERS, *OF_BOTH])
def test_what_is_of_an_inventory_needs_that_inventory(flag: str, text: str, field: str, value: object) -> None:
    kinds = {field for *_, field, _ in OF_MANIFESTS}, {field for *_, field, _ in OF_CLUSTERS}
    variable = f"TAGFS_{flag.upper().replace('-', '_')}"
    for inventory, others in (("kubernetes", kinds[0]), ("manifests:/m", kinds[1])):
        given = {"inventory": inventory, flag: text}
        if field in others:
            with pytest.raises(SettingRefused, match=f"^--{flag} has no effect with --inventory"):
                resolved(given)
        else:
            assert getattr(resolved(given), field) == value
            assert resolved({"inventory": inventory}, **{variable: text}) == resolved(given)
    with pytest.raises(SettingRefused, match=f"^--{flag} has no effect without --inventory"):
        resolved({flag: text})
    with pytest.raises(SettingRefused, match=f"^{variable} has no effect without --inventory"):
        resolved({}, **{variable: text})
    with pytest.raises(SettingRefused, match=f"^--{flag} has no effect on a read-only mount"):
        resolved({flag: text, "read-only": "1"})


def test_a_sweep_by_itself_looks_at_its_own_settings_only() -> None:
    settings = resolve_sweep("/store", {"inventory": "manifests:-"}, {"TAGFS_READ_ONLY": "1", "TAGFS_UID": "x"})
    assert settings == replace(DEFAULTS, mountpoint="", inventory=("manifests:-",))
    assert resolve_sweep("/store", {}, {"TAGFS_INVENTORY": "kubernetes"}).inventory == ("kubernetes",)
    with pytest.raises(SettingRefused, match="--inventory"):
        resolve_sweep("/store", {}, {})


def test_the_path_of_a_source_is_made_absolute() -> None:
    assert absolute_source("kubernetes") == "kubernetes"
    assert absolute_source("manifests:-") == "manifests:-"
    assert absolute_source("manifests:/a/../b") == "manifests:/b"
    assert absolute_source("manifests:a/b") == f"manifests:{os.getcwd()}/a/b"


def test_the_namespaces_of_a_cluster_are_those_that_flux_means() -> None:
    def of(namespace: str | None = None, **flags: str) -> tuple[str, ...]:
        named = {flag.replace("_", "-"): text for flag, text in flags.items()}
        environment = {} if namespace is None else {"RUNTIME_NAMESPACE": namespace}
        return namespaces_of(resolved({"inventory": "kubernetes", **named}), environment)

    assert of("flux-system") == ()
    assert of("flux-system", watch_all_namespaces="false") == ("flux-system",)
    assert of("flux-system", watch_all_namespaces="false", watch_namespace="b,a") == ("a", "b")
    for missing in (None, "", "Not A Namespace"):
        with pytest.raises(SettingRefused, match="RUNTIME_NAMESPACE"):
            of(missing, watch_all_namespaces="false")


def test_a_switch_that_is_off_has_no_effect_to_lose() -> None:
    assert resolved({"read-only": "1"}, TAGFS_WIPE_FOREIGN="0").wipe_foreign is False


def test_variables_that_are_no_setting_are_left_alone() -> None:
    # Kubernetes sets such for a Service of that name.
    assert resolved({}, TAGFS_PORT="tcp://10.0.0.1:80", TAGFS_SERVICE_HOST="10.0.0.1") == DEFAULTS


def test_the_other_commands_share_values_and_defaults() -> None:
    assert value_of("max-list-size", None, {}) == DEFAULTS.list_limit
    assert value_of("max-list-size", None, {"TAGFS_MAX_LIST_SIZE": "2"}) == 2 << 20
    assert value_of("max-list-size", "1", {"TAGFS_MAX_LIST_SIZE": "2"}) == 1 << 20
    with pytest.raises(SettingRefused, match=r"^TAGFS_MAX_LIST_SIZE: "):
        value_of("max-list-size", None, {"TAGFS_MAX_LIST_SIZE": "two"})


def test_codecs_are_those_there_are() -> None:
    assert {setting.flag for setting in SETTINGS} >= {"codec"}
    for name in ("gzip", "zstd"):
        assert codec.named(name).name == resolved({"codec": name}).codec


def refusal(flags: dict[str, str], *options: str) -> str | None:
    try:
        resolved(flags, *options)
    except SettingRefused as error:
        return str(error)
    return None


@given(st.sampled_from([setting.flag for setting in SETTINGS]), st.text(max_size=20))
def test_any_text_is_a_value_or_refused_by_its_flag(flag: str, text: str) -> None:
    assert (refusal({flag: text}) or f"--{flag}").startswith(f"--{flag}")


@given(st.text(max_size=40))
def test_any_option_is_a_value_or_refused(option: str) -> None:
    assert (refusal({}, option) or "-o ").startswith("-o ")
