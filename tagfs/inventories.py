"""Inventories: the one that the settings ask for.  Async.

Owns: which trees and which objects of a cluster are meant.
Does not know: how they are read and asked.  What only one of them needs is imported for it alone.
"""

import logging
import sys
from collections.abc import Mapping

from tagfs.errors import NameRefused, SettingRefused
from tagfs.inventory import Inventory
from tagfs.names import check_namespace
from tagfs.settings import MountSettings
from tagfs.values import KUBERNETES, MANIFESTS, STANDARD_INPUT

log = logging.getLogger(__name__)

RUNTIME_NAMESPACE = "RUNTIME_NAMESPACE"
"""The variable that Flux's deployments set to the namespace of their pod."""


def inventory_of(settings: MountSettings, environment: Mapping[str, str], is_mount: bool) -> Inventory | None:
    """The inventory that `--inventory` names; None where it names none.

    Raises:
        SettingRefused: it cannot be had so.
        ClusterUnknown: where the cluster is, or who asks, cannot be told.
    """
    if not settings.inventory:
        return None
    if settings.inventory == (KUBERNETES,):
        return _of_cluster(settings, environment)
    paths = [source.removeprefix(MANIFESTS) for source in settings.inventory]
    is_given = STANDARD_INPUT in paths
    if is_given and is_mount:
        raise SettingRefused(
            "--inventory manifests:- is for `tagfs sweep`: a mount reads its manifests again and again"
        )
    from tagfs.declared import ManifestsInventory
    from tagfs.manifests import Manifests

    return ManifestsInventory(
        Manifests(
            [path for path in paths if path != STANDARD_INPUT],
            settings.manifests_include,
            settings.manifests_ignore,
            sys.stdin.buffer.read if is_given else None,
        )
    )


def _of_cluster(settings: MountSettings, environment: Mapping[str, str]) -> Inventory:
    namespaces = namespaces_of(settings, environment)
    try:
        from tagfs import kubeconfig
        from tagfs.cluster import KubernetesInventory
        from tagfs.kube import Kube
    except ImportError as error:
        raise SettingRefused(f"--inventory kubernetes needs more ({error}): pip install 'tagfs[kubernetes]'") from error
    access = kubeconfig.find(environment, settings.kube_context)
    log.info("the inventory is %s", access.origin)
    kube = Kube(access, settings.kube_qps, settings.kube_burst)
    return KubernetesInventory(kube, namespaces, settings.watch_label_selector)


def namespaces_of(settings: MountSettings, environment: Mapping[str, str]) -> tuple[str, ...]:
    """The namespaces whose objects count; none: all."""
    if settings.watch_namespaces:
        return tuple(sorted(settings.watch_namespaces))
    if settings.watch_all_namespaces:
        return ()
    name = environment.get(RUNTIME_NAMESPACE, "")
    try:
        check_namespace(name)
    except NameRefused:
        raise SettingRefused(
            f"--watch-all-namespaces false means the namespace in the variable {RUNTIME_NAMESPACE}, which is {name!r}"
        ) from None
    return (name,)
