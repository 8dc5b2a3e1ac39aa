"""Rights: whether the cluster lets an inventory be had, by trying.  Async.

Owns: what is asked of the cluster, what each refusal means.
Does not know: how the API is spoken.
"""

from collections.abc import Mapping

import trio

from tagfs.answers import Collection
from tagfs.cluster import GROUP, RESOURCE, VERSIONS
from tagfs.errors import ApiFailed, ClusterUnknown, CredentialsMissing, ResourceMissing, RightsMissing
from tagfs.inventories import namespaces_of
from tagfs.kube import Kube
from tagfs.kubeconfig import find
from tagfs.remarks import Remark, fail, ok
from tagfs.settings import MountSettings

PATIENCE = 30.0
"""Seconds."""


def examine(settings: MountSettings, environment: Mapping[str, str]) -> list[Remark]:
    """Remarks on the cluster; SettingRefused where the settings contradict each other."""
    namespaces = namespaces_of(settings, environment) or (None,)
    try:
        access = find(environment, settings.kube_context)
    except ClusterUnknown as error:
        return [
            fail("cluster", str(error), "KUBECONFIG, --kube-context, or in a pod automountServiceAccountToken: true")
        ]
    return [trio.run(_try, Kube(access), one, access.origin) for one in namespaces]


async def _try(kube: Kube, namespace: str | None, origin: str) -> Remark:
    """List and watch, as a mount does."""
    whose = f"{RESOURCE} of namespace {namespace}" if namespace else f"all {RESOURCE}"
    try:
        with trio.fail_after(PATIENCE):
            served = await kube.served_version(GROUP, RESOURCE, VERSIONS)
            below = f"/namespaces/{namespace}" if namespace else ""
            collection = Collection(f"/apis/{GROUP}/{served}{below}/{RESOURCE}")
            found = await kube.list(collection, lambda metadata: metadata.name)
            async with kube.watch(collection, found.version):
                return ok("cluster", f"{origin}: may list and watch {whose}")
    except RightsMissing as error:
        kind, yaml = ("Role", "namespace") if namespace else ("ClusterRole", "cluster")
        return fail(
            "cluster",
            f"{origin}: {error}",
            f"bind a {kind} with get, list and watch on {RESOURCE}.{GROUP}: deploy/rbac/{yaml}.yaml"
            + ("" if namespace else "; or follow fewer: --watch-namespace"),
        )
    except ResourceMissing as error:
        return fail(
            "cluster", f"{origin}: {error}", "install Flux's image-reflector-controller, or its definitions first"
        )
    except (ApiFailed, CredentialsMissing) as error:
        return fail("cluster", f"{origin}: {error}", "kubectl get imagerepositories -A as the same user tells more")
    except trio.TooSlowError:
        return fail("cluster", f"{origin}: no answer within {PATIENCE:g} s", "look at the network, and its policies")
