"""A real API server: etcd and kube-apiserver on free ports of the loopback interface, for as long as a test run lasts.

Both end with the process that started them, however that ends.
"""

import ctypes
import json
import os
import signal
import ssl
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import httpcore2
import trio
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tagfs.cluster import GROUP, RESOURCE
from tagfs.connections import Connections
from tagfs.credentials import Material, Presented, Trust
from tagfs.kubeconfig import Access
from tagfs.names import RepositoryKey
from tests.support.clusters import NONE, Cluster, Labels, free_ports, until
from tests.support.daemon import eventually

HOST = "127.0.0.1"
ADMIN_TOKEN = "admin"
NAMESPACE = "flux-system"
SERVICE_ACCOUNT = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/tagfs"
RIGHTS = Path(__file__).parents[2] / "deploy" / "rbac"
DEFINITION = Path(__file__).parent / "crd.yaml"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"

START_PATIENCE = 120.0
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class ApiServer:
    """The two processes."""

    def __init__(self, program: Path, directory: Path) -> None:
        self._program = program
        self._directory = directory
        self._etcd_port, self._peer_port, self._port = free_ports(3, HOST)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self._port}"

    @property
    def authority(self) -> Path:
        return self._directory / "certificates" / "apiserver.crt"

    @property
    def pid(self) -> int:
        return self._processes["kube-apiserver"].pid

    def start_etcd(self) -> None:
        client, peer = f"http://{HOST}:{self._etcd_port}", f"http://{HOST}:{self._peer_port}"
        self._spawn(
            "etcd",
            *("etcd", "--name=test", f"--data-dir={self._directory / 'etcd'}", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            *(f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=test={peer}"),
        )
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        (self._directory / "accounts.key").write_bytes(key)
        (self._directory / "tokens.csv").write_text(f'{ADMIN_TOKEN},admin,1,"system:masters"\n')
        eventually(lambda: self._answers(f"{client}/health"), "etcd to be ready", START_PATIENCE)

    def start(self) -> None:
        """Start the API server; `is_ready` then tells when it is.  Not from a worker thread: see `_spawn`."""
        key = self._directory / "accounts.key"
        self._spawn(
            "kube-apiserver",
            str(self._program),
            f"--etcd-servers=http://{HOST}:{self._etcd_port}",
            "--etcd-compaction-interval=0",
            *(f"--bind-address={HOST}", f"--advertise-address={HOST}", f"--secure-port={self._port}"),
            f"--cert-dir={self.authority.parent}",
            f"--token-auth-file={self._directory / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--allow-privileged=true",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--endpoint-reconciler-type=none",
        )

    def is_ready(self) -> bool:
        return self._answers(f"{self.url}/readyz")

    def stop(self) -> None:
        """As in a crash: told to end, it would first wait for many seconds."""
        self._end("kube-apiserver")

    def compact(self) -> None:
        """Make etcd forget all earlier versions."""
        key = "/v3/kv/range", {"key": "AA=="}
        version = self._etcd(*key)["header"]["revision"]
        self._etcd("/v3/kv/compaction", {"revision": version, "physical": True})

    def end(self) -> None:
        for name in list(self._processes):
            self._end(name)

    def _spawn(self, name: str, *command: str) -> None:
        with open(self._directory / f"{name}.log", "ab") as log:
            # When the thread that started it is gone the kernel ends it: nothing outlives a test run that was killed.
            self._processes[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )

    def _end(self, name: str) -> None:
        if (process := self._processes.pop(name, None)) is not None:
            process.kill()
            process.wait()

    def _answers(self, url: str) -> bool:
        for name, process in self._processes.items():
            log = self._directory / f"{name}.log"
            assert process.poll() is None, f"{name} ended with {process.poll()}: {log.read_text()[-2000:]}"
        blind = ssl.create_default_context()
        blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
        try:
            with urllib.request.urlopen(url, timeout=5, context=blind) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def _etcd(self, path: str, question: dict[str, Any]) -> Any:
        body = json.dumps(question).encode()
        with urllib.request.urlopen(f"http://{HOST}:{self._etcd_port}{path}", body, timeout=10) as answer:
            return json.load(answer)


class _Answer(NamedTuple):
    status: int
    document: Any


@dataclass(slots=True)
class Administrator:
    """May do anything."""

    server: ApiServer
    pool: httpcore2.AsyncConnectionPool

    async def ask(
        self, method: str, path: str, document: Any = None, accepted: Iterable[int] = (200, 201, 202), **headers: str
    ) -> _Answer:
        response = await self.pool.request(
            method,
            self.server.url + path,
            headers=list(
                ({"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"} | headers).items()
            ),
            content=json.dumps(document).encode() if document is not None else None,
        )
        try:
            answer = json.loads(response.content)
        except ValueError:
            answer = response.content
        assert response.status in accepted, (method, path, response.status, answer)
        return _Answer(response.status, answer)

    async def apply(self, path: Path) -> None:
        """Create what a manifest has; what is there already is left."""
        for document in yaml.safe_load_all(path.read_text()):
            below = f"namespaces/{namespace}/" if (namespace := document["metadata"].get("namespace")) else ""
            api, plural = document["apiVersion"], document["kind"].lower() + "s"
            prefix = "/api" if api == "v1" else "/apis"
            await self.ask("POST", f"{prefix}/{api}/{below}{plural}", document, (201, 409))

    async def until(self, path: str, condition: Callable[[_Answer], bool], token: str = ADMIN_TOKEN) -> None:
        with trio.fail_after(START_PATIENCE):
            while not condition(  # noqa: ASYNC110 - nothing tells
                await self.ask("GET", path, None, range(600), Authorization=f"Bearer {token}")
            ):
                await trio.sleep(0.02)


class RealCluster(Cluster):
    """The real API server, as the service account of `deploy/rbac/cluster.yaml`."""

    def __init__(self, server: ApiServer, administrator: Administrator, directory: Path) -> None:
        super().__init__()
        self.server = server
        self.administrator = administrator
        self._token_path = directory / "token"
        self._tokens = 0

    @property
    def access(self) -> Access:
        return Access(
            self.server.url,
            "the real one",
            Presented(token=Material("the test", path=str(self._token_path))),
            Trust(Material("the test", path=str(self.server.authority))),
        )

    @property
    def token(self) -> str:
        """Of the service account."""
        return self._token_path.read_text()

    async def prepare(self) -> None:
        """The definition, the rights, no object, a token."""
        await self.create_definition()
        listed = await self.administrator.ask("GET", objects_path())
        for namespace in {item["metadata"]["namespace"] for item in listed.document["items"]}:
            await self.administrator.ask("DELETE", objects_path(namespace))
        await self._create_namespace(NAMESPACE)
        await self._new_token(after=self.grant_rights)

    async def create(self, keys: Iterable[RepositoryKey], labels: Labels = NONE) -> None:
        keys = list(keys)
        for namespace in {key.namespace for key in keys}:
            await self._create_namespace(namespace)
        waiting = iter(keys)

        async def work() -> None:
            for key in waiting:
                spec = {"image": "example.test/app", "interval": "1h"}
                metadata = {"name": key.name, "namespace": key.namespace, "labels": labels}
                document = {"apiVersion": f"{GROUP}/v1", "kind": "ImageRepository", "metadata": metadata, "spec": spec}
                await self.administrator.ask("POST", objects_path(key.namespace), document)
                self.alive[key] = dict(labels)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(work)

    async def relabel(self, key: RepositoryKey, labels: Labels) -> None:
        path = f"{objects_path(key.namespace)}/{key.name}"
        found = (await self.administrator.ask("GET", path)).document
        found["metadata"]["labels"] = labels
        self.alive[key] = dict(labels)
        await self.administrator.ask("PUT", path, found)

    async def delete(self, key: RepositoryKey) -> None:
        del self.alive[key]
        await self.administrator.ask("DELETE", f"{objects_path(key.namespace)}/{key.name}")

    async def delete_all(self, namespace: str) -> None:
        self.alive = {key: labels for key, labels in self.alive.items() if key.namespace != namespace}
        await self.administrator.ask("DELETE", objects_path(namespace))

    async def stop(self) -> None:
        self.server.stop()

    async def start(self) -> None:
        self.server.start()
        await until(self.server.is_ready)

    async def compact(self) -> None:
        await self.stop()
        self.forget()
        await self.start()

    def forget(self) -> None:
        self.server.compact()

    async def rotate_token(self) -> None:
        old, number = self.token, self._tokens
        await self._new_token()
        # A token is bound to a secret, and refused once that is gone and a cache of some seconds has run out.
        await self.administrator.ask("DELETE", f"/api/v1/namespaces/{NAMESPACE}/secrets/token-{number}")
        await self.administrator.until("/version", lambda answer: answer.status == 401, old)

    async def withdraw_rights(self) -> None:
        await self.administrator.ask("DELETE", f"{BINDINGS}/tagfs-inventory")
        await self.until_answered(403)

    async def grant_rights(self) -> None:
        await self.administrator.apply(RIGHTS / "cluster.yaml")
        if self._tokens:
            await self.until_answered(200)

    async def delete_definition(self) -> None:
        self.alive.clear()
        path = f"{DEFINITIONS}/{RESOURCE}.{GROUP}"
        await self.administrator.ask("DELETE", path)
        # What it defined is served a little longer than it is there.
        for gone in (path, objects_path(), f"/apis/{GROUP}"):
            await self.administrator.until(gone, lambda answer: answer.status == 404)

    async def create_definition(self) -> None:
        await self.administrator.ask("POST", DEFINITIONS, yaml.safe_load(DEFINITION.read_text()), (201, 409))
        # Nor are its objects served at once, or told of when they are.
        for there in (objects_path(), f"/apis/{GROUP}", f"/apis/{GROUP}/v1"):
            await self.administrator.until(there, lambda answer: answer.status == 200)

    async def _create_namespace(self, name: str) -> None:
        document = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        await self.administrator.ask("POST", "/api/v1/namespaces", document, (201, 409))

    async def _new_token(self, after: Callable[[], Any] | None = None) -> None:
        if after is not None:
            await after()
        self._tokens += 1
        name = f"token-{self._tokens}"
        secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"
        document = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        await self.administrator.ask("DELETE", f"{secrets}/{name}", None, (200, 404))
        secret = (await self.administrator.ask("POST", secrets, document)).document
        bound = {"kind": "Secret", "apiVersion": "v1", "name": name, "uid": secret["metadata"]["uid"]}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"boundObjectRef": bound, "expirationSeconds": 3600},
        }
        answer = await self.administrator.ask("POST", f"{SERVICE_ACCOUNT}/token", request)
        self._token_path.write_text(answer.document["status"]["token"])
        await self.until_answered(200)

    async def until_answered(self, status: int, namespace: str | None = None) -> None:
        """RBAC follows its objects at a short distance."""
        await self.administrator.until(objects_path(namespace), lambda answer: answer.status == status, self.token)


@asynccontextmanager
async def real_cluster(server: ApiServer, directory: Path) -> AsyncIterator[RealCluster]:
    """The cluster of a running API server, as new."""
    context = ssl.create_default_context(cafile=str(server.authority))
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    connections = Connections()
    try:
        async with httpcore2.AsyncConnectionPool(
            ssl_context=context, max_connections=8, retries=2, network_backend=connections
        ) as pool:
            cluster = RealCluster(server, Administrator(server, pool), directory)
            await cluster.prepare()
            yield cluster
    finally:
        await connections.close()


def program() -> Path | None:
    """The API server that `make test-kubernetes` built."""
    path = os.environ.get("TAGFS_KUBE_APISERVER")
    return Path(path) if path else None


def objects_path(namespace: str | None = None) -> str:
    """Of all objects, or of those of a namespace."""
    return f"/apis/{GROUP}/v1{f'/namespaces/{namespace}' if namespace else ''}/{RESOURCE}"
