"""Credential plugins: programs that a kubeconfig names to be asked for a token or a certificate.  Blocking.

Owns: asking one, as `client.authentication.k8s.io` v1 and v1beta1 have it; how long its answer is good.
Does not know: where a kubeconfig is, HTTP.
Invariant: a plugin never meets a terminal: what it asks for would wait for ever in a daemon.
"""

import base64
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tagfs.credentials import Credentials, Identity, bearer
from tagfs.errors import CredentialsMissing

GROUP = "client.authentication.k8s.io"
VERSIONS = (f"{GROUP}/v1", f"{GROUP}/v1beta1")

PATIENCE = 60.0
"""Seconds that a plugin may take; those that ask a cloud take one or two."""

EARLY = 10.0
"""Seconds before its end in which a credential is not used any more: it must outlive the request."""

COMPLAINT_LIMIT = 500
"""Characters of what a plugin says on standard error that an error repeats."""


@dataclass(slots=True)
class CredentialPlugin(Credentials):
    """One program, and its last answer.

    Args:
        origin: what to call it in an error: the file and the user.
        command: a path, or a name to be found in PATH.
        cluster: what it is told of the cluster (`provideClusterInfo`).
        install_hint: what its author wants said where it is missing.
    """

    origin: str
    command: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    api_version: str = VERSIONS[0]
    cluster: Mapping[str, Any] | None = None
    install_hint: str = ""

    is_slow = True

    # INVARIANT: `_identity` was good until `_until` (seconds since 1970) when the plugin gave it.
    _identity: Identity | None = field(default=None, init=False, repr=False)
    _until: float = field(default=0.0, init=False)

    def identity(self, renew: bool = False) -> Identity:
        if renew or self._identity is None or time.time() >= self._until:
            self._identity, self._until = self._read(self._run())
        return self._identity

    def _run(self) -> bytes:
        spec: dict[str, Any] = {"interactive": False}
        if self.cluster is not None:
            spec["cluster"] = self.cluster
        question = {"apiVersion": self.api_version, "kind": "ExecCredential", "spec": spec}
        try:
            process = subprocess.Popen(
                [self.command, *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **self.environment, "KUBERNETES_EXEC_INFO": json.dumps(question)},
                start_new_session=True,  # no terminal to ask on, and one group to be ended together
            )
        except OSError as error:
            hint = f"; {' '.join(self.install_hint.split())}" if self.install_hint else ""
            raise CredentialsMissing(f"{self.origin}: cannot run {self.command}: {error.strerror}{hint}") from error
        with process:
            try:
                output, complaint = process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise CredentialsMissing(f"{self.origin}: {self.command} did not answer in {PATIENCE:g} s") from None
        if process.returncode != 0:
            said = " ".join(complaint.decode("utf-8", "replace").split())[-COMPLAINT_LIMIT:]
            raise CredentialsMissing(f"{self.origin}: {self.command} ended with {process.returncode}: {said}")
        return output

    def _read(self, output: bytes) -> tuple[Identity, float]:
        """-> (identity, until when it is good).  What the plugin printed is secret and never repeated."""
        try:
            answer = json.loads(output)
            api_version, kind, status = answer["apiVersion"], answer["kind"], answer.get("status")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._wrong("is no ExecCredential in JSON") from None
        if kind != "ExecCredential" or api_version != self.api_version:
            raise self._wrong(f"is not an ExecCredential of {self.api_version}")
        if not isinstance(status, dict):
            raise self._wrong("has no status")
        token = self._text(status, "token")
        certificate = self._text(status, "clientCertificateData")
        key = self._text(status, "clientKeyData")
        if not token and not certificate:
            raise self._wrong("has neither status.token nor status.clientCertificateData")
        if bool(certificate) != bool(key):
            raise self._wrong("has one of status.clientCertificateData and status.clientKeyData without the other")
        identity = Identity(
            bearer(token.encode(), f"{self.origin}: {self.command}") if token else None,
            certificate.encode() if certificate else None,
            key.encode() if key else None,
        )
        return identity, self._end(self._text(status, "expirationTimestamp"))

    def _end(self, timestamp: str) -> float:
        if not timestamp:
            return float("inf")
        try:
            end = datetime.fromisoformat(timestamp)
        except ValueError:
            raise self._wrong("has a status.expirationTimestamp that is no RFC 3339 time") from None
        return (end if end.tzinfo is not None else end.replace(tzinfo=UTC)).timestamp() - EARLY

    def _text(self, status: Mapping[str, Any], name: str) -> str:
        value = status.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(f"has a status.{name} that is no text")
        return value or ""

    def _wrong(self, what: str) -> CredentialsMissing:
        return CredentialsMissing(f"{self.origin}: what {self.command} printed {what}")


def cluster_info(
    server: str, server_name: str | None, is_blind: bool, authority: bytes | None, config: Any
) -> dict[str, Any]:
    """`spec.cluster` of the question."""
    info: dict[str, Any] = {"server": server}
    if server_name:
        info["tls-server-name"] = server_name
    if is_blind:
        info["insecure-skip-tls-verify"] = True
    if authority is not None:
        info["certificate-authority-data"] = base64.b64encode(authority).decode()
    if config is not None:
        info["config"] = config
    return info
