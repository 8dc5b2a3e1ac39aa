"""The manifests of deploy/: that tagfs takes what they ask of it, and that an API server takes them."""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tagfs import arguments
from tests.kubernetes.real_api import NAMESPACE, ApiServer, RealCluster, real_cluster
from tests.test_inventory_contract import server

__all__ = ["server"]

PROJECT = Path(__file__).parent.parent
DEPLOY = PROJECT / "deploy"
FLUX = Path(__file__).parent / "kubernetes" / "flux"
FILES = [path for path in sorted(DEPLOY.rglob("*.yaml")) if "monitoring" not in path.parts]
BUILT = [
    *(DEPLOY / name for name in ("rbac", "base", "examples/consumer", "examples/sweep")),
    *(FLUX / name for name in ("window", "storage")),
]
FLUX_PORTS = {8080, 9440}

PATHS = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
    "Pod": "/api/v1/namespaces/{}/pods",
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "CronJob": "/apis/batch/v1/namespaces/{}/cronjobs",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}


def documents(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document]


def containers(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each container of a manifest, wherever its pod is in it."""
    for key, value in document.items():
        if key in ("containers", "initContainers"):
            yield from value
        elif isinstance(value, dict):
            yield from containers(value)


def of_tagfs() -> list[Any]:
    found = []
    for path in FILES:
        for document in documents(path.read_text()):
            for container in containers(document):
                if container.get("image", "").startswith("tagfs"):
                    where = f"{path.relative_to(DEPLOY)}"
                    found.append(pytest.param(container, id=where))
    return found


class _Runs(dict[str, arguments.Run]):
    """For each command one that gives its name, in place of an exit code."""

    def __missing__(self, name: str) -> arguments.Run:
        return lambda *_: name  # type: ignore[return-value]


def test_there_is_a_container_of_each_kind() -> None:
    assert [one.id for one in of_tagfs()] == [
        "base/deployment.yaml",
        "components/storage/sidecar.yaml",
        "components/window/sidecar.yaml",
        "examples/sweep/cronjob.yaml",
    ]


@pytest.mark.parametrize("container", of_tagfs())
def test_tagfs_takes_its_arguments(container: dict[str, Any]) -> None:
    parsed = arguments.parser(_Runs()).parse_args(container["args"])
    assert parsed.run({}, {}) == container["args"][0]


@pytest.mark.parametrize("container", of_tagfs())
def test_what_is_promised_is_what_is_used(container: dict[str, Any]) -> None:
    resources = container["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert "cpu" in resources["requests"] and "cpu" not in resources["limits"]


@pytest.mark.parametrize("container", of_tagfs())
def test_its_ports_are_its_own_and_those_it_listens_at(container: dict[str, Any]) -> None:
    told = {int(one.rpartition(":")[2]) for one in container["args"] if "-addr=" in one}
    declared = {port["containerPort"] for port in container.get("ports", [])}
    assert told == declared
    assert not declared & FLUX_PORTS
    names = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    health = next((one.rpartition(":")[2] for one in container["args"] if "--health-addr" in one), None)
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        if kind in container:
            assert str(names[container[kind]["httpGet"]["port"]]) == health


@pytest.mark.parametrize("container", of_tagfs())
def test_a_mount_is_made_below_what_readers_are_given(container: dict[str, Any]) -> None:
    """Who was given the mount point itself would keep a dead mount after a crash."""
    if container["args"][0] != "mount":
        assert not container["securityContext"].get("privileged", False)
        return
    point = container["args"][-1]
    shared = [one for one in container["volumeMounts"] if one.get("mountPropagation") == "Bidirectional"]
    assert [Path(one["mountPath"]) for one in shared] == [Path(point).parent]


# -- with a real kustomize and a real API server


def kustomized(directory: Path) -> list[dict[str, Any]]:
    program = os.environ.get("TAGFS_KUSTOMIZE")
    if program is None:
        pytest.skip("make test-kubernetes builds kustomize and runs this with it")
    done = subprocess.run([program, "build", str(directory)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return documents(done.stdout)


@pytest.fixture
async def real(server: ApiServer, tmp_path: Path) -> AsyncIterator[RealCluster]:
    async with real_cluster(server, tmp_path) as real:
        yield real


@pytest.mark.kubernetes
@pytest.mark.parametrize("directory", BUILT, ids=lambda path: f"{path.parent.name}/{path.name}")
async def test_an_api_server_takes_it(directory: Path, real: RealCluster) -> None:
    """Each object is created without being kept, and no field is unknown."""
    ask = real.administrator.ask
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": "default"}}
    await ask("POST", "/api/v1/namespaces/default/serviceaccounts", account, (201, 409))
    for document in kustomized(directory):
        path = PATHS[document["kind"]].format(document["metadata"].get("namespace", NAMESPACE))
        answer = await ask("POST", f"{path}?dryRun=All&fieldValidation=Strict", document, range(600))
        exists = answer.status == 409 and answer.document["reason"] == "AlreadyExists"
        assert answer.status == 201 or exists, json.dumps(answer.document)


@pytest.mark.kubernetes
@pytest.mark.parametrize("component", ["window", "storage"])
def test_a_component_starts_before_the_controller_and_leaves_the_rest_of_it(component: str) -> None:
    (before,) = documents((FLUX / "base" / "deployment.yaml").read_text())
    (after,) = (one for one in kustomized(FLUX / component) if one["kind"] == "Deployment")
    pod = after["spec"]["template"]["spec"]
    (sidecar,) = pod["initContainers"]
    assert (sidecar["restartPolicy"], "startupProbe" in sidecar) == ("Always", True)
    (manager,) = pod["containers"]
    (was,) = before["spec"]["template"]["spec"]["containers"]
    assert manager["args"][: len(was["args"])] == was["args"]
    assert "--feature-gates=FluxStorage=true" in manager["args"]
    assert all(mount in manager["volumeMounts"] for mount in was["volumeMounts"])
    assert {key: manager[key] for key in ("image", "ports", "securityContext")} == {
        key: was[key] for key in ("image", "ports", "securityContext")
    }
    (lists,) = (one for one in manager["volumeMounts"] if one not in was["volumeMounts"])
    assert lists["mountPropagation"] == "HostToContainer"
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for container in (sidecar, manager) for mount in container["volumeMounts"]} <= volumes


@pytest.mark.kubernetes
@pytest.mark.parametrize("directory", [DEPLOY / "base", FLUX / "window", FLUX / "storage"], ids=lambda path: path.name)
def test_the_port_of_the_metrics_is_opened_by_one_policy(directory: Path) -> None:
    built = kustomized(directory)
    (policy,) = (one["spec"] for one in built if one["kind"] == "NetworkPolicy")
    assert policy["podSelector"] == {"matchLabels": {"tagfs.io/metrics": "true"}}
    (pod,) = (one["spec"]["template"] for one in built if one["kind"] == "Deployment")
    assert pod["metadata"]["labels"]["tagfs.io/metrics"] == "true"
    ports = {port["name"]: port["containerPort"] for one in containers(pod) for port in one.get("ports", [])}
    assert [one["port"] for one in policy["ingress"][0]["ports"]] == [ports["http-tagfs"]]
    # Readers look for it on the nodes where Flux's controller is.
    assert ("tagfs.io/serves" in pod["metadata"]["labels"]) == (directory != DEPLOY / "base")


@pytest.mark.kubernetes
def test_flux_writes_where_tagfs_shows_and_compresses_nothing() -> None:
    (deployment,) = (one for one in kustomized(FLUX / "storage") if one["kind"] == "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    point = pod["initContainers"][0]["args"][-1]
    args = dict(one.lstrip("-").partition("=")[::2] for one in pod["containers"][0]["args"])
    assert args["storage-path"] == point
    assert int(args["storage-compression-threshold"]) * 1024 >= 1 << 30
    assert args["gc-interval"] == "0"
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert pod["terminationGracePeriodSeconds"] > 10
