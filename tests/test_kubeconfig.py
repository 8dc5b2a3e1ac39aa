"""Where the cluster is and who asks: service accounts, kubeconfigs, credential plugins; what is said of bad ones."""

import base64
import json
import logging
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from tagfs import kubeconfig
from tagfs.credentials import Identity, Presented
from tagfs.errors import ClusterUnknown, CredentialsMissing
from tagfs.kubeconfig import Access

CLUSTER = {"name": "c", "cluster": {"server": "https://api.test:6443"}}
USER = {"name": "u", "user": {"token": "secret"}}
CONTEXT = {"name": "x", "context": {"cluster": "c", "user": "u"}}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def document(
    cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None, **fields: Any
) -> dict[str, Any]:
    """A kubeconfig with one context; `cluster` and `user` are added to the usual ones."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "c", "cluster": {"server": "https://api.test:6443"} | (cluster or {})}],
        "users": [{"name": "u", "user": {"token": "secret"} if user is None else user}],
        "contexts": [CONTEXT],
    } | fields


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Access]:
    """Read a kubeconfig that consists of the given content."""

    def read(content: Any, context: str | None = None) -> Access:
        return kubeconfig.find({"KUBECONFIG": str(written(tmp_path / "config", content))}, context)

    return read


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


# -- the service account of a pod


@pytest.fixture
def account(tmp_path: Path, authority: trustme.CA) -> Path:
    directory = tmp_path / "account"
    written(directory / "token", "pod-token\n")
    authority.cert_pem.write_to_path(directory / "ca.crt")
    return directory


@pytest.mark.parametrize(
    ("environment", "server"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://10.0.0.1:6443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}, "https://[fd00::1]:443"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "https://10.0.0.1:443"),
    ],
)
def test_a_pod_asks_as_its_service_account(account: Path, environment: dict[str, str], server: str) -> None:
    access = kubeconfig.find(environment, service_account=account)
    assert access.server == server
    assert access.credentials.identity() == Identity("Bearer pod-token")
    assert access.trust.context(Identity()).check_hostname


def test_a_token_that_rotates_is_read_again(account: Path) -> None:
    access = kubeconfig.find({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, service_account=account)
    (account / "token").write_text("next")
    assert access.credentials.identity().authorization == "Bearer next"


@pytest.mark.parametrize("name", ["token", "ca.crt"])
def test_a_pod_without_a_service_account_is_told_so(account: Path, name: str) -> None:
    (account / name).unlink()
    with pytest.raises(ClusterUnknown, match=rf"{name} is missing.*automountServiceAccountToken"):
        kubeconfig.find({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, service_account=account)


def test_what_goes_before_what(tmp_path: Path, account: Path) -> None:
    written(tmp_path / ".kube/config", document({"server": "https://home.test"}))
    named = written(tmp_path / "named", document({"server": "https://named.test"}))
    everything = {
        "KUBECONFIG": str(named),
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "HOME": str(tmp_path),
    }

    def server(context: str | None = None, **changed: str) -> str:
        return kubeconfig.find(everything | changed, context, account).server

    assert server() == "https://named.test"
    assert server(KUBECONFIG="") == "https://10.0.0.1:443"
    assert server(KUBECONFIG="", context="x") == "https://home.test"
    assert server(KUBECONFIG="", KUBERNETES_SERVICE_HOST="") == "https://home.test"


def test_yaml_is_imported_only_for_a_kubeconfig_that_is_no_json(tmp_path: Path) -> None:
    path = written(tmp_path / "config", json.dumps(document()))
    source = f"import sys, tagfs.kubeconfig, tagfs.cluster; tagfs.kubeconfig.find({{'KUBECONFIG': {str(path)!r}}})"
    subprocess.run([sys.executable, "-c", f"{source}; sys.exit('yaml' in sys.modules)"], check=True)


# -- kubeconfig files


def test_several_files_are_merged_and_the_first_wins(tmp_path: Path) -> None:
    first = written(
        tmp_path / "a/config",
        {
            "contexts": [{"name": "mine", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"tokenFile": "token"}}],
        },
    )
    second = written(tmp_path / "b/config", document({"server": "https://b.test"}))
    third = written(tmp_path / "c/config", document({"server": "https://c.test"}) | {"current-context": "y"})
    written(tmp_path / "a/token", "from-a")
    paths = os.pathsep.join(map(str, ["", tmp_path / "missing", first, second, third]))
    access = kubeconfig.find({"KUBECONFIG": paths})
    assert access.server == "https://b.test"
    assert access.credentials.identity().authorization == "Bearer from-a", "relative to the file that names it"
    assert kubeconfig.find({"KUBECONFIG": paths}, "mine").origin.startswith("context mine of ")


def test_a_context_is_chosen_by_name(read: Callable[..., Access]) -> None:
    other = {"name": "other", "cluster": {"server": "http://127.0.0.1:8001/prefix/"}}
    content = document(
        clusters=[CLUSTER, other],
        contexts=[CONTEXT, {"name": "y", "context": {"cluster": "other"}}],
    )
    access = read(content, "y")
    assert access.server == "http://127.0.0.1:8001/prefix"
    assert access.credentials.identity() == Identity()


def test_who_asks(read: Callable[..., Access], tmp_path: Path, authority: trustme.CA) -> None:
    leaf = authority.issue_cert(common_name="reader")
    certificate = b"".join(part.bytes() for part in leaf.cert_chain_pems)
    key = leaf.private_key_pem.bytes()
    (tmp_path / "cert").write_bytes(certificate)
    (tmp_path / "key").write_bytes(key)
    (tmp_path / "token").write_text("of-file")
    inline = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
    expected = Identity(None, certificate, key)
    cases: list[tuple[dict[str, Any], Identity]] = [
        ({}, Identity()),
        ({"token": "t"}, Identity("Bearer t")),
        ({"token": "t", "tokenFile": "token"}, Identity("Bearer of-file")),
        ({"username": "a", "password": "b"}, Identity("Basic " + encoded(b"a:b"))),
        (inline, expected),
        ({"client-certificate": "cert", "client-key": str(tmp_path / "key")}, expected),
        ({"client-certificate": "nowhere", "client-key": "nowhere"} | inline, expected),
    ]
    for user, identity in cases:
        access = read(document(user=user))
        assert access.credentials.identity() == identity, user
        access.trust.context(identity)


def test_whom_to_trust(read: Callable[..., Access], tmp_path: Path, authority: trustme.CA) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca")
    for fields in (
        {"certificate-authority": "ca"},
        {"certificate-authority-data": encoded(authority.cert_pem.bytes())},
        {"certificate-authority": "nowhere", "certificate-authority-data": encoded(authority.cert_pem.bytes())},
    ):
        context = read(document(fields)).trust.context(Identity())
        assert context.cert_store_stats()["x509_ca"] == 1
    assert read(document({"tls-server-name": "other.test"})).trust.server_name == "other.test"


def test_who_believes_anybody_is_warned(read: Callable[..., Access], caplog: pytest.LogCaptureFixture) -> None:
    access = read(document({"insecure-skip-tls-verify": True}))
    assert access.trust.is_blind
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_impersonation(read: Callable[..., Access]) -> None:
    access = read(document(user={"token": "t", "as": "jane", "as-uid": "7", "as-groups": ["a", "b"]}))
    assert access.impersonation == (
        ("Impersonate-User", "jane"),
        ("Impersonate-Uid", "7"),
        ("Impersonate-Group", "a"),
        ("Impersonate-Group", "b"),
    )


PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1", "command": "p", "interactiveMode": "Never"}
BAD: dict[str, tuple[Any, str]] = {
    "not YAML": ("a: [", r"config, line 1: not YAML"),
    "no mapping": ("- a", r"config: a kubeconfig is a mapping"),
    "nothing": ("", r"config: no current-context; name one with --kube-context"),
    "no such context": (document(contexts=[]), r"config: contexts: there is no 'x'"),
    "contexts are no list": (document(contexts={"x": {}}), r"config\.contexts: must be a list"),
    "no such cluster": (document(clusters=[]), r"clusters: there is no 'c'"),
    "no such user": (document(users=[]), r"users: there is no 'u'"),
    "twice": (document(users=[USER, USER]), r"config\.users: has 'u' twice"),
    "a context without a cluster": (
        document(contexts=[{"name": "x", "context": {"user": "u"}}]),
        r"contexts\[x\]\.cluster: is missing",
    ),
    "an empty user": (document(users=[{"name": "u"}]), r"config\.users: 'u' has no user"),
    "no server": (document({"server": ""}), r"clusters\[c\]\.server: '' is no address"),
    "a server without a scheme": (document({"server": "api.test:6443"}), r"clusters\[c\]\.server"),
    "a server with a bad port": (document({"server": "https://api.test:port"}), r"clusters\[c\]\.server"),
    "a server with a bad host": (document({"server": f"https://{'a' * 64}.test"}), r"clusters\[c\]\.server"),
    "a proxy": (document({"proxy-url": "http://proxy.test"}), r"clusters\[c\]\.proxy-url: .*takes no proxy"),
    "a blind authority": (
        document({"insecure-skip-tls-verify": True, "certificate-authority": "ca"}),
        r"insecure-skip-tls-verify: contradicts",
    ),
    "a switch that is none": (document({"insecure-skip-tls-verify": "yes"}), r"must be true or false"),
    "a number for a token": (document(user={"token": 7}), r"users\[u\]\.token: must be text"),
    "no base64": (document({"certificate-authority-data": "%"}), r"certificate-authority-data: is not base64"),
    "a certificate without a key": (
        document(user={"client-certificate": "a"}),
        r"users\[u\]\.client-key: is missing beside the other",
    ),
    "a removed way": (document(user={"auth-provider": {"name": "gcp"}}), r"auth-provider: is no longer part"),
    "extra": (document(user={"as": "a", "as-user-extra": {}}), r"as-user-extra: is not supported"),
    "a group of nobody": (document(user={"as-groups": ["a"]}), r"users\[u\]\.as: is missing"),
    "a plugin of another time": (
        document(user={"exec": PLUGIN | {"apiVersion": "client.authentication.k8s.io/v1alpha1"}}),
        r"users\[u\]\.exec\.apiVersion: '.*v1alpha1' is neither",
    ),
    "a plugin without a mode": (
        document(user={"exec": {"apiVersion": PLUGIN["apiVersion"], "command": "p"}}),
        r"exec\.interactiveMode: '' is none of",
    ),
    "a plugin for people": (
        document(user={"exec": PLUGIN | {"interactiveMode": "Always"}}),
        r"interactiveMode: Always: nobody is there",
    ),
    "a plugin without a command": (document(user={"exec": PLUGIN | {"command": ""}}), r"exec\.command: is missing"),
    "a plugin with bad variables": (document(user={"exec": PLUGIN | {"env": [{"name": "A"}]}}), r"exec\.env: must be"),
    "a plugin with bad arguments": (document(user={"exec": PLUGIN | {"args": [1]}}), r"exec\.args: must be a list"),
    "a plugin beside a password": (
        document(user={"exec": PLUGIN, "username": "a"}),
        r"exec: stands beside other credentials",
    ),
    "a plugin that is no mapping": (document(user={"exec": "p"}), r"users\[u\]\.exec: must be a mapping"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_understood_is_named(read: Callable[..., Access], name: str) -> None:
    content, said = BAD[name]
    with pytest.raises(ClusterUnknown, match=said):
        read(content)


def test_no_kubeconfig_at_all(tmp_path: Path) -> None:
    with pytest.raises(ClusterUnknown, match=r"no kubeconfig: .*\.kube/config does not exist"):
        kubeconfig.find({"HOME": str(tmp_path)})
    with pytest.raises(ClusterUnknown, match=r"Is a directory"):
        kubeconfig.find({"KUBECONFIG": str(tmp_path)})


def test_files_that_cannot_be_used_are_named(read: Callable[..., Access], tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "garbage").write_bytes(b"\xff\xfe")
    for name, said in [("nowhere", "No such file"), ("empty", "is empty"), ("garbage", "no token that can be sent")]:
        with pytest.raises(CredentialsMissing, match=rf"users\[u\]\.tokenFile: .*{said}"):
            read(document(user={"tokenFile": name})).credentials.identity()
    access = read(document({"certificate-authority": "garbage"}))
    with pytest.raises(CredentialsMissing, match=r"clusters\[c\]\.certificate-authority: no certificate in PEM"):
        access.trust.context(Identity())
    access = read(document(user={"client-certificate": "garbage", "client-key": "garbage"}))
    with pytest.raises(CredentialsMissing, match="client certificate or its key cannot be used"):
        access.trust.context(access.credentials.identity())


def test_an_encrypted_key_is_refused_and_nobody_is_asked(authority: trustme.CA, read: Callable[..., Access]) -> None:
    from cryptography.hazmat.primitives import serialization as forms

    leaf = authority.issue_cert(common_name="reader")
    key = forms.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    locked = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.BestAvailableEncryption(b"x"))
    certificate = leaf.cert_chain_pems[0].bytes()
    access = read(document())
    with pytest.raises(CredentialsMissing, match="encrypted"):
        access.trust.context(Identity(None, certificate, locked))


def test_no_secret_is_shown(read: Callable[..., Access]) -> None:
    secrets = {"token": "hush", "password": "hush", "client-key-data": encoded(b"hush")}
    access = read(document(user=secrets | {"username": "a", "client-certificate-data": encoded(b"public")}))
    assert "hush" not in repr(access)
    assert "hush" not in repr(access.credentials.identity())
    assert isinstance(access.credentials, Presented)


# -- credential plugins


class Plugin:
    """A program that answers with what the test wrote, and notes how it was asked."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.path = directory / "bin" / "plugin"
        written(
            self.path,
            f"#!/bin/sh\ncd '{directory}'\necho run >>runs\nprintf '%s' \"$KUBERNETES_EXEC_INFO\" >asked\n"
            f'printf "%s" "$*:$COLOUR" >arguments\n[ -t 0 ] && echo terminal >>runs\ncat answer\n. ./ending\n',
        )
        self.path.chmod(stat.S_IRWXU)
        self.end("exit 0")
        self.answer({"token": "of-plugin"})

    def answer(self, status: Any, api_version: str = PLUGIN["apiVersion"], kind: str = "ExecCredential") -> None:
        content = {"apiVersion": api_version, "kind": kind, "status": status}
        written(self._directory / "answer", status if isinstance(status, str) else json.dumps(content))

    def end(self, command: str) -> None:
        written(self._directory / "ending", command + "\n")

    @property
    def runs(self) -> int:
        return len((self._directory / "runs").read_text().splitlines())

    @property
    def asked(self) -> Any:
        return json.loads((self._directory / "asked").read_text())

    @property
    def arguments(self) -> str:
        return (self._directory / "arguments").read_text()


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    return Plugin(tmp_path / "plugin")


@pytest.fixture
def access(plugin: Plugin, read: Callable[..., Access]) -> Access:
    fields = PLUGIN | {"command": str(plugin.path), "installHint": "Get it\nfrom the  cloud."}
    return read(document(user={"exec": fields}))


def after(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_a_plugin_is_asked(plugin: Plugin, read: Callable[..., Access], tmp_path: Path, version: str) -> None:
    api_version = f"client.authentication.k8s.io/{version}"
    plugin.answer({"token": "of-plugin"}, api_version)
    fields = PLUGIN | {
        "apiVersion": api_version,
        "command": "./plugin/bin/plugin",
        "args": ["get", "token"],
        "env": [{"name": "COLOUR", "value": "blue"}],
    }
    if version == "v1beta1":
        del fields["interactiveMode"]
    access = read(document(user={"exec": fields}))
    assert access.credentials.is_slow
    assert access.credentials.identity() == Identity("Bearer of-plugin")
    assert plugin.asked == {"apiVersion": api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
    assert plugin.arguments == "get token:blue"


def test_a_plugin_by_name_is_found_in_path(
    plugin: Plugin, read: Callable[..., Access], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{plugin.path.parent}:{os.environ['PATH']}")
    access = read(document(user={"exec": PLUGIN | {"command": "plugin", "interactiveMode": "IfAvailable"}}))
    assert access.credentials.identity().authorization == "Bearer of-plugin"


def test_a_plugin_is_told_of_the_cluster_where_it_wants_to(
    plugin: Plugin, read: Callable[..., Access], authority: trustme.CA
) -> None:
    fields = PLUGIN | {"command": str(plugin.path), "provideClusterInfo": True}
    extension = {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}
    content = document(
        {
            "certificate-authority-data": encoded(authority.cert_pem.bytes()),
            "tls-server-name": "other.test",
            "extensions": [{"name": "minikube", "extension": {}}, extension],
        },
        {"exec": fields},
    )
    read(content).credentials.identity()
    assert plugin.asked["spec"]["cluster"] == {
        "server": "https://api.test:6443",
        "tls-server-name": "other.test",
        "certificate-authority-data": encoded(authority.cert_pem.bytes()),
        "config": {"audience": "a"},
    }


def test_an_answer_is_good_until_it_ends(plugin: Plugin, access: Access) -> None:
    plugin.answer({"token": "one", "expirationTimestamp": after(3600)})
    for _ in range(3):
        assert access.credentials.identity().authorization == "Bearer one"
    assert plugin.runs == 1
    plugin.answer({"token": "two", "expirationTimestamp": after(3)})
    assert access.credentials.identity(renew=True).authorization == "Bearer two"
    assert plugin.runs == 2
    assert access.credentials.identity().authorization == "Bearer two"
    assert plugin.runs == 3, "one that ends within seconds is not used again"
    plugin.answer({"token": "three"})
    for _ in range(3):
        assert access.credentials.identity().authorization == "Bearer three"
    assert plugin.runs == 4


def test_a_plugin_may_give_a_certificate(plugin: Plugin, access: Access, authority: trustme.CA) -> None:
    leaf = authority.issue_cert(common_name="reader")
    certificate, key = leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()
    plugin.answer({"clientCertificateData": certificate.decode(), "clientKeyData": key.decode()})
    identity = access.credentials.identity()
    assert identity == Identity(None, certificate, key)
    access.trust.context(identity)


ANSWERS: dict[str, tuple[Any, str]] = {
    "no JSON": ("token", "is no ExecCredential in JSON"),
    "nothing": ("", "is no ExecCredential in JSON"),
    "a list": ("[]", "is no ExecCredential in JSON"),
    "no status": (None, "has no status"),
    "an empty status": ({}, "has neither"),
    "a certificate alone": ({"clientCertificateData": "x"}, "without the other"),
    "a number": ({"token": 7}, r"status\.token that is no text"),
    "no time": ({"token": "hush", "expirationTimestamp": "soon"}, "no RFC 3339 time"),
    "two lines": ({"token": "hush\nX-Admin: yes"}, "no token that can be sent"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_bad_answer_is_described_and_not_repeated(plugin: Plugin, access: Access, name: str) -> None:
    status, said = ANSWERS[name]
    plugin.answer(status)
    with pytest.raises(CredentialsMissing, match=said) as raised:
        access.credentials.identity()
    assert "users[u].exec" in str(raised.value)
    assert "hush" not in str(raised.value)


def test_an_answer_of_another_version_is_refused(plugin: Plugin, access: Access) -> None:
    plugin.answer({"token": "t"}, "client.authentication.k8s.io/v1beta1")
    with pytest.raises(CredentialsMissing, match=r"is not an ExecCredential of client\.auth"):
        access.credentials.identity()


def test_a_plugin_that_fails_is_quoted(plugin: Plugin, access: Access) -> None:
    plugin.end("echo 'please  log in' >&2; exit 3")
    with pytest.raises(CredentialsMissing, match=r"plugin ended with 3: please log in$"):
        access.credentials.identity()


def test_a_plugin_that_is_missing_comes_with_its_authors_hint(plugin: Plugin, access: Access) -> None:
    plugin.path.unlink()
    with pytest.raises(CredentialsMissing, match=r"cannot run .*: No such file or directory; Get it from the cloud\."):
        access.credentials.identity()


def test_a_plugin_that_hangs_is_given_up(plugin: Plugin, access: Access, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tagfs.credentialplugin.PATIENCE", 0.3)
    plugin.end("sleep 60")
    before = time.monotonic()
    with pytest.raises(CredentialsMissing, match="did not answer"):
        access.credentials.identity()
    assert time.monotonic() - before < 30
