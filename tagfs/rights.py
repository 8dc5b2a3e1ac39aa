"""Rights: whether the inventory of a sweep can be had, by trying.  Async.

Owns: what is asked of the cluster, what each refusal means; which fault of manifests holds a sweep.
Does not know: how the API is spoken, how manifests are read.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import trio

from tagfs.errors import (
    ApiFailed,
    ClusterUnknown,
    CredentialsMissing,
    InventoryIncomplete,
    ManifestsChanging,
    ResourceMissing,
    RightsMissing,
    SettingRefused,
)
from tagfs.inventories import inventory_of, namespaces_of
from tagfs.remarks import Remark, fail, ok, warn
from tagfs.settings import MountSettings
from tagfs.values import KUBERNETES

if TYPE_CHECKING:
    from tagfs.kube import Kube

PATIENCE = 30.0
"""Seconds."""


def examine(settings: MountSettings, environment: Mapping[str, str]) -> list[Remark]:
    """Remarks on the inventory that the settings name; SettingRefused where they contradict each other."""
    if settings.inventory == (KUBERNETES,):
        return _cluster(settings, environment)
    return [_manifests(settings, environment)]


def _manifests(settings: MountSettings, environment: Mapping[str, str]) -> Remark:
    """Read all that they declare, as a mount does."""
    inventory = inventory_of(settings, environment, is_mount=True)
    assert inventory is not None
    try:
        keys = trio.run(inventory.keys)
    except ManifestsChanging as error:
        return warn("manifests", str(error), "ask again: a mount looks again by itself")
    except InventoryIncomplete as error:
        return fail(
            "manifests", str(error), "mend them, or leave them out with --manifests-ignore; no list is deleted before"
        )
    if not keys:
        return warn(
            "manifests",
            "they declare no ImageRepository",
            "nothing is deleted for that; look whether the path is right",
        )
    return ok("manifests", f"they declare {len(keys)} image repositories")


def _cluster(settings: MountSettings, environment: Mapping[str, str]) -> list[Remark]:
    namespaces = namespaces_of(settings, environment) or (None,)
    try:
        from tagfs.kube import Kube
        from tagfs.kubeconfig import find
    except ImportError as error:
        raise SettingRefused(f"--inventory kubernetes needs more ({error}): pip install 'tagfs[kubernetes]'") from error
    try:
        access = find(environment, settings.kube_context)
    except ClusterUnknown as error:
        return [
            fail("cluster", str(error), "KUBECONFIG, --kube-context, or in a pod automountServiceAccountToken: true")
        ]
    return [trio.run(_try, Kube(access), one, access.origin) for one in namespaces]


async def _try(kube: "Kube", namespace: str | None, origin: str) -> Remark:
    """List and watch, as a mount does."""
    from tagfs.answers import Collection
    from tagfs.cluster import GROUP, RESOURCE, VERSIONS

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
