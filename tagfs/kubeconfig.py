"""Kubeconfig: where the cluster is, and as whom to ask it.  Blocking.

Owns: the service account of a pod; finding, merging and reading kubeconfig files as kubectl does.
Does not know: HTTP; what a token or a certificate is.
Invariant: a field that would change who asks, or whom, is understood or refused, never passed over.
"""

import base64
import binascii
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from tagfs.credentialplugin import GROUP, VERSIONS, CredentialPlugin, cluster_info
from tagfs.credentials import Credentials, Material, Presented, Trust
from tagfs.errors import ClusterUnknown, CredentialsMissing

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where the kubelet puts what a pod may show the API server."""

_HOST, _PORT = "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"


@dataclass(frozen=True, slots=True)
class Access:
    """All that is needed to ask a cluster.

    Args:
        server: `https://host:port`, and a path where the API is below one.
        origin: what to call it to a person.
        impersonation: headers that ask to be treated as somebody else.
    """

    server: str
    origin: str
    credentials: Credentials
    trust: Trust = field(default_factory=Trust)
    impersonation: tuple[tuple[str, str], ...] = ()


def find(
    environment: Mapping[str, str],
    context: str | None = None,
    service_account: Path = SERVICE_ACCOUNT,
) -> Access:
    """The cluster that is meant: KUBECONFIG's, else the one this pod runs in, else that of ~/.kube/config.

    Args:
        context: the kubeconfig context to use; a pod's service account is then not considered.

    Raises:
        ClusterUnknown
    """
    named = [Path(part) for part in environment.get("KUBECONFIG", "").split(os.pathsep) if part]
    if named:
        return read(named, context)
    if context is None and environment.get(_HOST):
        return in_cluster(environment, service_account)
    home = environment.get("HOME") or os.path.expanduser("~")
    return read([Path(home, ".kube", "config")], context)


def in_cluster(environment: Mapping[str, str], service_account: Path = SERVICE_ACCOUNT) -> Access:
    """The cluster that this pod runs in, as its service account."""
    host, port = environment.get(_HOST, ""), environment.get(_PORT) or "443"
    if not host:
        raise ClusterUnknown(f"{_HOST} is not set: this is no pod")
    for name in ("token", "ca.crt"):
        if not (service_account / name).is_file():
            raise ClusterUnknown(
                f"{service_account / name} is missing: the pod has no service account token"
                " (automountServiceAccountToken: false?)"
            )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Access(
        server,
        f"the service account of this pod at {server}",
        Presented(token=Material("the service account", path=str(service_account / "token"))),
        Trust(Material("the service account", path=str(service_account / "ca.crt"))),
    )


def read(paths: list[Path], context: str | None = None) -> Access:
    """The cluster of a context (default: the current one), out of several files: the first to name a thing wins."""
    files = [file for path in paths if (file := _load(path)) is not None]
    if not files:
        raise ClusterUnknown(f"no kubeconfig: {', '.join(map(str, paths))} does not exist")
    wanted = context
    for file in files:
        wanted = wanted or file.text("current-context")
    if not wanted:
        raise ClusterUnknown(f"{files[0].origin}: no current-context; name one with --kube-context")
    chosen = _named(files, "contexts", wanted)
    cluster_name, user_name = chosen.text("cluster"), chosen.text("user")
    if not cluster_name:
        chosen.refuse("cluster", "is missing")
    cluster = _named(files, "clusters", cluster_name)
    user = _named(files, "users", user_name) if user_name else _Section(chosen.path, chosen.origin, {})
    server = _server(cluster)
    trust = _trust(cluster)
    if trust.is_blind:
        log.warning("%s: insecure-skip-tls-verify: anybody in between can pose as the cluster", cluster.origin)
    return Access(
        server,
        f"context {wanted} of {chosen.path} at {server}",
        _credentials(user, cluster, server, trust),
        trust,
        _impersonation(user),
    )


class _Section:
    """A mapping in a kubeconfig; knows what to call each of its fields in an error, and what paths are relative to."""

    def __init__(self, path: Path, origin: str, fields: Mapping[str, Any]) -> None:
        self.path = path
        self.origin = origin
        self._fields = fields

    def refuse(self, name: str, reason: str) -> NoReturn:
        raise ClusterUnknown(f"{self.origin}.{name}: {reason}")

    def get(self, name: str) -> Any:
        return self._fields.get(name)

    def text(self, name: str) -> str:
        value = self._fields.get(name)
        if value is not None and not isinstance(value, str):
            self.refuse(name, "must be text (in quotes, where it looks like a number)")
        return value or ""

    def switch(self, name: str) -> bool:
        value = self._fields.get(name)
        if value is not None and not isinstance(value, bool):
            self.refuse(name, "must be true or false")
        return bool(value)

    def items(self, name: str) -> list[Any]:
        value = self._fields.get(name)
        if value is not None and not isinstance(value, list):
            self.refuse(name, "must be a list")
        return value or []

    def texts(self, name: str) -> tuple[str, ...]:
        items = self.items(name)
        if not all(isinstance(item, str) for item in items):
            self.refuse(name, "must be a list of texts")
        return tuple(items)

    def section(self, name: str) -> "_Section | None":
        value = self._fields.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(name, "must be a mapping")
        return _Section(self.path, f"{self.origin}.{name}", value)

    def resolve(self, path: str) -> str:
        """A path in a kubeconfig is relative to the file that it stands in."""
        return str(self.path.parent / path)

    def material(self, name: str) -> Material | None:
        """What `<name>-data` holds in base64, else the file that `<name>` names."""
        if data := self.text(f"{name}-data"):
            try:
                return Material(f"{self.origin}.{name}-data", base64.b64decode(data, validate=True))
            except (binascii.Error, ValueError):
                self.refuse(f"{name}-data", "is not base64")
        if path := self.text(name):
            return Material(f"{self.origin}.{name}", path=self.resolve(path))
        return None


def _load(path: Path) -> _Section | None:
    """The file, or None where it is not there, which kubectl passes over too."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClusterUnknown(f"{path}: {error.strerror}") from error
    return _Section(path, str(path), _parsed(path, text))


def _parsed(path: Path, text: bytes) -> dict[str, Any]:
    try:
        # What is JSON is YAML, and a megabyte cheaper to read.
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _of_yaml(path, text)
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise ClusterUnknown(f"{path}: a kubeconfig is a mapping")
    return found


def _of_yaml(path: Path, text: bytes) -> Any:
    import yaml  # Only whoever has a kubeconfig in YAML pays for it.

    try:
        return yaml.safe_load(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ClusterUnknown(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None


def _named(files: list[_Section], kind: str, name: str) -> _Section:
    """The first of that name; two in one file are a mistake that nobody can resolve."""
    for file in files:
        found = [item for item in file.items(kind) if isinstance(item, dict) and item.get("name") == name]
        if len(found) > 1:
            file.refuse(kind, f"has {name!r} twice")
        if found:
            value = found[0].get(kind.removesuffix("s"))
            if not isinstance(value, dict):
                file.refuse(kind, f"{name!r} has no {kind.removesuffix('s')}")
            return _Section(file.path, f"{file.origin}: {kind}[{name}]", value)
    raise ClusterUnknown(f"{', '.join(file.origin for file in files)}: {kind}: there is no {name!r}")


def _server(cluster: _Section) -> str:
    server = cluster.text("server").rstrip("/")
    try:
        parts = urlsplit(server)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_usable = is_usable and not parts.query and not parts.username
        (parts.hostname or "").encode("idna")
    except ValueError:
        is_usable = False
    if not is_usable or not server.isascii():
        cluster.refuse("server", f"{server!r} is no address such as https://host:6443")
    if cluster.text("proxy-url"):
        cluster.refuse("proxy-url", "tagfs asks the cluster directly and takes no proxy")
    return server


def _trust(cluster: _Section) -> Trust:
    authority = cluster.material("certificate-authority")
    is_blind = cluster.switch("insecure-skip-tls-verify")
    if is_blind and authority is not None:
        cluster.refuse("insecure-skip-tls-verify", "contradicts the certificate-authority beside it")
    return Trust(authority, cluster.text("tls-server-name") or None, is_blind)


def _credentials(user: _Section, cluster: _Section, server: str, trust: Trust) -> Credentials:
    if user.get("auth-provider") is not None:
        user.refuse("auth-provider", "is no longer part of Kubernetes; use an exec plugin instead")
    token: Material | None = None
    if path := user.text("tokenFile"):
        token = Material(f"{user.origin}.tokenFile", path=user.resolve(path))
    elif text := user.text("token"):
        token = Material(f"{user.origin}.token", text.encode())
    certificate, key = user.material("client-certificate"), user.material("client-key")
    if (certificate is None) != (key is None):
        user.refuse("client-certificate" if certificate is None else "client-key", "is missing beside the other")
    basic = (user.text("username"), user.text("password")) if user.text("username") else None
    plugin = user.section("exec")
    if plugin is not None and token is None:
        if certificate is not None or basic is not None:
            user.refuse("exec", "stands beside other credentials; which ones are meant?")
        return _plugin(plugin, cluster, server, trust)
    return Presented(token, basic, certificate, key)


def _plugin(section: _Section, cluster: _Section, server: str, trust: Trust) -> CredentialPlugin:
    version = section.text("apiVersion")
    if version not in VERSIONS:
        section.refuse("apiVersion", f"{version!r} is neither {VERSIONS[0]} nor {VERSIONS[1]}")
    mode = section.text("interactiveMode")
    if mode not in ("Never", "IfAvailable", "Always") and (mode or version == VERSIONS[0]):
        section.refuse("interactiveMode", f"{mode!r} is none of Never, IfAvailable, Always")
    if mode == "Always":
        section.refuse("interactiveMode", "Always: nobody is there to be asked")
    command = section.text("command")
    if not command:
        section.refuse("command", "is missing")
    environment = {}
    for item in section.items("env"):
        if not (isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("value"), str)):
            section.refuse("env", "must be a list of name and value")
        environment[item["name"]] = item["value"]
    info = None
    if section.switch("provideClusterInfo"):
        try:
            authority = trust.authority.read() if trust.authority is not None else None
        except CredentialsMissing as error:
            raise ClusterUnknown(str(error)) from error
        extensions = [item for item in cluster.items("extensions") if isinstance(item, dict)]
        config = next((item.get("extension") for item in extensions if item.get("name") == f"{GROUP}/exec"), None)
        info = cluster_info(server, trust.server_name, trust.is_blind, authority, config)
    return CredentialPlugin(
        section.origin,
        section.resolve(command) if os.sep in command else command,
        section.texts("args"),
        environment,
        version,
        info,
        section.text("installHint"),
    )


def _impersonation(user: _Section) -> tuple[tuple[str, str], ...]:
    if user.get("as-user-extra") is not None:
        user.refuse("as-user-extra", "is not supported")
    headers = [("Impersonate-User", user.text("as")), ("Impersonate-Uid", user.text("as-uid"))]
    headers += [("Impersonate-Group", group) for group in user.texts("as-groups")]
    headers = [(name, value) for name, value in headers if value]
    if headers and not user.text("as"):
        user.refuse("as", "is missing beside as-uid or as-groups")
    if not all(value.isascii() and value.isprintable() for _, value in headers):
        user.refuse("as", "cannot be sent: not ASCII")
    return tuple(headers)
