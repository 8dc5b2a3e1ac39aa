"""The client of the Kubernetes API, on a fake that fails to order: each failure ends in a whole answer or an error."""

import itertools
import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from trio.testing import MockClock as Clock

from tagfs import answers, kube
from tagfs.answers import Collection
from tagfs.cluster import GROUP, RESOURCE, KubernetesInventory
from tagfs.credentialplugin import VERSIONS, CredentialPlugin
from tagfs.credentials import Material, Presented, Trust
from tagfs.errors import AnswerInvalid, ApiRefused, ApiUnreachable, InventoryIncomplete, VersionExpired
from tagfs.kube import Kube, Watch
from tagfs.names import RepositoryKey
from tagfs.pacing import Allowance, Backoff
from tests.support.clusters import following, keys_of, until
from tests.support.fake_api import SERVER_NAME, FakeCluster, Fault, fake_cluster

PATH = f"/apis/{GROUP}/v1/{RESOURCE}"
KEYS = keys_of("apps", 1100)


@pytest.fixture
def clock() -> Clock:
    return Clock(autojump_threshold=0.01)


@pytest.fixture
async def cluster(clock: Clock, tmp_path: Path) -> AsyncIterator[FakeCluster]:
    """Without TLS; 1,100 objects, which are three pages."""
    async with fake_cluster(tmp_path) as cluster:
        await cluster.create(KEYS)
        yield cluster


def lists(cluster: FakeCluster) -> list[dict[str, str]]:
    """The parameters of all requests for objects that were no watch."""
    asked = [request.parameters for request in cluster.requests if request.path.endswith(f"/{RESOURCE}")]
    return [parameters for parameters in asked if "watch" not in parameters]


def watches(cluster: FakeCluster) -> list[dict[str, str]]:
    return [request.parameters for request in cluster.requests if "watch" in request.parameters]


def is_later_page(parameters: dict[str, str]) -> bool:
    return "continue" in parameters


def is_watch(parameters: dict[str, str]) -> bool:
    return "watch" in parameters


# -- lists


async def test_a_list_is_read_page_by_page(clock: Clock, cluster: FakeCluster) -> None:
    assert await cluster.inventory().keys() == set(KEYS)
    assert [parameters["limit"] for parameters in lists(cluster)] == ["500"] * 3
    assert len({parameters.get("continue") for parameters in lists(cluster)}) == 3


PASSING = {
    "500": Fault.refusal(500),
    "502 of a proxy": Fault(502, body=b"<html>Bad Gateway</html>"),
    "503": Fault.refusal(503),
    "504": Fault.refusal(504),
    "429": Fault.refusal(429, headers={"Retry_After": 1}),
    "cut before the answer": Fault(),
    "cut in the answer": Fault(after=2000),
    "silence": Fault(hangs=True),
    "unauthorized once": Fault.refusal(401),
}


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", PASSING)
async def test_what_passes_does_not_cost_a_list_its_wholeness(
    clock: Clock, cluster: FakeCluster, name: str, times: int
) -> None:
    if name == "unauthorized once" and times > 1:
        times = 1
    cluster.faults += [replace(PASSING[name], on=is_later_page)] * times
    assert await cluster.inventory().keys() == set(KEYS)
    assert cluster.faults == []


@pytest.mark.parametrize("name", PASSING)
async def test_what_does_not_pass_is_an_error_in_bounded_time(clock: Clock, cluster: FakeCluster, name: str) -> None:
    cluster.faults += [replace(PASSING[name], on=is_later_page)] * 50
    with pytest.raises(InventoryIncomplete):
        await cluster.inventory().keys()
    assert len(lists(cluster)) <= 1 + kube.TRIES
    assert trio.current_time() < 200


async def test_a_list_that_expires_is_begun_anew(clock: Clock, cluster: FakeCluster) -> None:
    cluster.faults.append(Fault.refusal(410, on=is_later_page))
    assert await cluster.inventory().keys() == set(KEYS)
    assert [parameters["limit"] for parameters in lists(cluster)] == ["500", "500", "2000"]


async def test_a_list_that_always_expires_is_an_error(clock: Clock, cluster: FakeCluster) -> None:
    cluster.faults += [Fault.refusal(410, on=lambda parameters: True)] * 50
    kube_ = Kube(cluster.access)
    with pytest.raises(VersionExpired):
        await kube_.list(Collection(PATH), lambda metadata: metadata.name)
    assert [parameters["limit"] for parameters in lists(cluster)] == ["500", "2000", "8000", "32000"]


@pytest.mark.parametrize(("status", "hint"), [(403, "get, list and watch"), (404, "Flux's"), (400, "selector")])
async def test_what_no_repetition_mends_is_asked_once(
    clock: Clock, cluster: FakeCluster, status: int, hint: str
) -> None:
    cluster.faults.append(Fault.refusal(status, on=is_later_page))
    with pytest.raises(InventoryIncomplete, match=rf"{status}: to order.*{hint}"):
        await cluster.inventory().keys()
    assert len(lists(cluster)) == 2


RETRY_AFTER = {
    "seconds": lambda: "70",
    "date": lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=75), usegmt=True),
}


@pytest.mark.parametrize("form", RETRY_AFTER)
@pytest.mark.parametrize("status", [429, 503])
async def test_a_server_that_wants_to_be_left_alone_is(
    clock: Clock, cluster: FakeCluster, status: int, form: str
) -> None:
    cluster.faults.append(Fault.refusal(status, headers={"Retry-After": RETRY_AFTER[form]()}))
    await cluster.inventory().keys()
    first, second = (request.at for request in cluster.requests[:2])
    assert 70 <= second - first < 80


WRONG: dict[str, Any] = {
    "no JSON": b"<html>Welcome</html>",
    "nothing": b"",
    "an empty object": {},
    "another kind": {"kind": "ImageRepositoryList", "metadata": {"resourceVersion": "5"}, "items": []},
    "a status": {"kind": "Status", "metadata": {}, "status": "Success"},
    "no version": {"kind": "PartialObjectMetadataList", "metadata": {}, "items": []},
    "no items": {"kind": "PartialObjectMetadataList", "metadata": {"resourceVersion": "5"}},
    "another version": {"kind": "PartialObjectMetadataList", "metadata": {"resourceVersion": "5"}, "items": []},
}


@pytest.mark.parametrize("name", WRONG)
async def test_an_answer_that_is_no_list_is_an_error_and_not_an_empty_list(
    clock: Clock, cluster: FakeCluster, name: str
) -> None:
    body = WRONG[name] if isinstance(WRONG[name], bytes) else json.dumps(WRONG[name]).encode()
    cluster.faults.append(Fault(200, body=body, on=is_later_page))
    with pytest.raises(InventoryIncomplete):
        await cluster.inventory().keys()


async def test_what_a_server_says_is_one_line_of_a_log(clock: Clock, cluster: FakeCluster) -> None:
    cluster.faults.append(Fault.refusal(403, "no\nERROR all lists\tare deleted\n" + "x" * 100_000))
    with pytest.raises(InventoryIncomplete, match="403: no ERROR all lists are deleted x") as raised:
        await cluster.inventory().keys()
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 2000


async def test_an_answer_beyond_all_measure_is_not_kept(
    clock: Clock, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "SIZE_LIMIT", 10_000)
    with pytest.raises(InventoryIncomplete, match="more than 10000 bytes"):
        await cluster.inventory().keys()


async def test_an_object_that_can_have_no_list_is_passed_over_and_said_once(
    clock: Clock, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    names = [("apps", "good"), ("apps", "Bad"), ("a.b", "x"), ("", "cluster-wide")]
    page = {
        "kind": "PartialObjectMetadataList",
        "metadata": {"resourceVersion": "5"},
        "items": [{"metadata": {"namespace": namespace, "name": name}} for namespace, name in names],
    }
    inventory = cluster.inventory()
    for _ in range(2):
        cluster.faults.append(Fault(200, body=json.dumps(page).encode(), on=lambda parameters: "limit" in parameters))
        assert await inventory.keys() == {RepositoryKey("apps", "good")}
    assert len(caplog.records) == 3


# -- discovery


@pytest.mark.parametrize(
    ("served", "chosen"), [(["v1beta2", "v1"], "v1"), (["v1beta2"], "v1beta2"), (["v2", "v1beta2"], "v1beta2")]
)
async def test_the_preferred_of_the_served_versions_is_asked(
    clock: Clock, cluster: FakeCluster, served: list[str], chosen: str
) -> None:
    cluster.served = served
    assert await cluster.inventory().keys() == set(KEYS)
    assert cluster.requests[-1].path == f"/apis/{GROUP}/{chosen}/{RESOURCE}"


async def test_only_unknown_versions_are_an_error(clock: Clock, cluster: FakeCluster) -> None:
    cluster.served = ["v2", "v3"]
    with pytest.raises(InventoryIncomplete, match=r"v1 or v1beta2.*v2, v3"):
        await cluster.inventory().keys()


async def test_a_version_that_goes_is_found_out(clock: Clock, cluster: FakeCluster) -> None:
    inventory = cluster.inventory()
    await inventory.keys()
    cluster.served = ["v1beta2"]
    with pytest.raises(InventoryIncomplete):
        await inventory.keys()
    assert await inventory.keys() == set(KEYS)


# -- who asks


async def test_a_refused_token_is_read_again_once(clock: Clock, cluster: FakeCluster) -> None:
    def rotated(parameters: dict[str, str]) -> bool:
        if "continue" not in parameters:
            return False
        cluster.refuse_token()
        cluster.write_token()
        return True

    cluster.faults.append(Fault.refusal(401, on=rotated))
    assert await cluster.inventory().keys() == set(KEYS)
    assert [request.token for request in cluster.requests][-4:] == ["token-1", "token-1", "token-2", "token-2"]


async def test_a_token_that_stays_refused_is_shown_twice(clock: Clock, cluster: FakeCluster) -> None:
    cluster.refuse_token()
    with pytest.raises(InventoryIncomplete, match="401"):
        await cluster.inventory().keys()
    assert len(cluster.requests) == 2
    cluster.write_token()
    assert await cluster.inventory().keys() == set(KEYS)


async def test_a_token_file_that_is_gone_is_an_error(clock: Clock, cluster: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "token").unlink()
    with pytest.raises(InventoryIncomplete, match="token: No such file"):
        await cluster.inventory().keys()
    (tmp_path / "token").write_text("\n")
    with pytest.raises(InventoryIncomplete, match="is empty"):
        await cluster.inventory().keys()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def test_only_the_right_server_is_believed(tmp_path: Path, authority: trustme.CA) -> None:
    async with fake_cluster(tmp_path, authority) as cluster:
        right = cluster.access.trust.authority
        stranger = Material("the test", trustme.CA().cert_pem.bytes())
        for trust, is_right in [
            (Trust(right), True),
            (Trust(right, server_name=SERVER_NAME), True),
            (Trust(right, server_name="other.test"), False),
            (Trust(stranger), False),
            (Trust(), False),
            (Trust(is_blind=True), True),
        ]:
            async with Kube(replace(cluster.access, trust=trust)).session() as session:
                if is_right:
                    await session.decoded(answers.GROUP, f"/apis/{GROUP}")
                else:
                    with pytest.raises(ApiUnreachable, match=r"certificate"):
                        async with session.answer(f"/apis/{GROUP}", answers.PLAIN, 5):
                            pass


async def test_a_client_certificate_is_shown(tmp_path: Path, authority: trustme.CA) -> None:
    leaf = authority.issue_cert(common_name="reader")
    certificate = Material("the test", b"".join(part.bytes() for part in leaf.cert_chain_pems))
    key = Material("the test", leaf.private_key_pem.bytes())
    async with fake_cluster(tmp_path, authority) as cluster:
        cluster.token = ""
        await KubernetesInventory(
            Kube(replace(cluster.access, credentials=Presented(certificate=certificate, key=key)))
        ).keys()
        assert {request.certificate for request in cluster.requests} == {"reader"}


async def test_a_plugin_whose_token_is_refused_is_asked_again(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    status = '"status":{"token":"\'$(cat token)\'"}'
    plugin.write_text(
        f'#!/bin/sh\ncd {tmp_path}\necho \'{{"apiVersion":"{VERSIONS[0]}","kind":"ExecCredential",{status}}}\'\n'
    )
    plugin.chmod(0o700)
    async with fake_cluster(tmp_path) as cluster:
        credentials = CredentialPlugin("the test", str(plugin))
        inventory = KubernetesInventory(Kube(replace(cluster.access, credentials=credentials)))
        await inventory.keys()
        await cluster.rotate_token()
        await inventory.keys()
    assert [request.token for request in cluster.requests][-3:] == ["token-1", "token-1", "token-2"]


async def test_an_address_of_ipv6_is_asked_with_brackets(tmp_path: Path, authority: trustme.CA) -> None:
    try:
        async with fake_cluster(tmp_path, authority, "::1") as cluster:
            assert await cluster.inventory().keys() == frozenset()
            assert cluster.requests[0].host == cluster.url.removeprefix("https://")
            assert cluster.requests[0].host.startswith("[::1]:")
    except* OSError:
        pytest.skip("no IPv6 here")


def test_no_authority_of_the_machine_is_trusted_beside_the_clusters(authority: trustme.CA) -> None:
    context = Trust(Material("the test", authority.cert_pem.bytes())).context(Presented().identity())
    assert context.cert_store_stats()["x509_ca"] == 1
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


# -- watches


async def test_a_watch_that_is_cut_goes_on_where_it_was(clock: Clock, cluster: FakeCluster) -> None:
    async with following(cluster, cluster.inventory()) as follower:
        await trio.sleep(70)  # a bookmark
        before = len(lists(cluster))
        await cluster.stop()
        await cluster.start()
        await cluster.delete(KEYS[0])
        await follower.until_departed(KEYS[0])
        assert len(lists(cluster)) == before + 1, "a look at the one, no list of all"
    assert watches(cluster)[-1]["resourceVersion"] == str(1000 + len(KEYS))


async def test_bookmarks_move_a_watch_on(clock: Clock, cluster: FakeCluster) -> None:
    inventory = cluster.inventory(label_selector="a=b")
    async with following(cluster, inventory, lambda labels: False):
        await cluster.create(keys_of("unmeant", 10))
        await trio.sleep(70)
        cluster.forget()
        before = len(lists(cluster))
        await cluster.stop()
        await cluster.start()
        await until(lambda: inventory.is_synced and len(watches(cluster)) > 1)
        assert len(lists(cluster)) == before
    assert watches(cluster)[-1]["resourceVersion"] == str(1000 + len(KEYS) + 10)


async def test_a_watch_that_says_nothing_is_replaced_by_a_fresh_list(clock: Clock, cluster: FakeCluster) -> None:
    cluster.has_bookmarks = False
    inventory = cluster.inventory()
    async with following(cluster, inventory):
        before = len(lists(cluster))
        await trio.sleep(kube.WATCH_PATIENCE + 10)
        assert len(lists(cluster)) == before + 3
        await until(lambda: inventory.is_synced)


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}\n',
        b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}\n',
        b'{"type":"DELETED","object":{"metadata":{"name":"app-0001","namespace":"apps"}}}\n',
        b'{"type":"TELEPORTED","object":{"metadata":{"resourceVersion":"7"}}}\n',
        b'{"type":"DELETED"',
        b"<html>\n",
        b"",
    ],
)
async def test_a_watch_that_talks_nonsense_is_begun_again(
    clock: Clock, cluster: FakeCluster, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.faults += [Fault(200, body=body, on=is_watch)] * 3
    async with following(cluster, cluster.inventory()) as follower:
        await until(lambda: not cluster.faults)
        await cluster.delete(KEYS[5])
        await follower.until_departed(KEYS[5])
    assert follower.departed == [KEYS[5]]
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) <= 3


async def test_a_watch_that_lies_makes_nobody_depart(clock: Clock, cluster: FakeCluster) -> None:
    lie = {"metadata": {"name": KEYS[3].name, "namespace": "apps", "resourceVersion": str(1000 + len(KEYS))}}
    body = json.dumps({"type": "DELETED", "object": lie}).encode() + b"\n"
    cluster.faults.append(Fault(200, body=body, on=is_watch))
    async with following(cluster, cluster.inventory()) as follower:
        await until(lambda: any("fieldSelector" in parameters for parameters in lists(cluster)))
        await cluster.delete(KEYS[4])
        await follower.until_departed(KEYS[4])
    assert follower.departed == [KEYS[4]]


async def test_who_comes_back_before_it_is_told_has_not_departed(clock: Clock, cluster: FakeCluster) -> None:
    inventory = cluster.inventory()
    async with inventory.departures() as departures:
        await until(lambda: inventory.is_synced)
        await cluster.delete(KEYS[0])
        await cluster.delete(KEYS[1])
        assert await anext(departures) == KEYS[0]
        await cluster.create([KEYS[1]])
        await cluster.delete(KEYS[2])
        assert await anext(departures) == KEYS[2]


async def test_a_slow_reader_is_not_told_what_was_found_long_ago(clock: Clock, cluster: FakeCluster) -> None:
    inventory = cluster.inventory()
    async with inventory.departures() as departures:
        await until(lambda: inventory.is_synced)
        for key in KEYS[:6]:
            await cluster.delete(key)
        told = [await anext(departures)]
        asked = len(lists(cluster))
        await trio.sleep(60)
        told += [await anext(departures) for _ in KEYS[1:6]]
        assert sorted(told) == KEYS[:6]
        assert len(lists(cluster)) > asked


async def test_many_departures_cost_few_requests(clock: Clock, cluster: FakeCluster) -> None:
    async with following(cluster, cluster.inventory()) as follower:
        before = len(cluster.requests)
        await cluster.delete_all("apps")
        await follower.until_departed(*KEYS)
        assert len(cluster.requests) - before < 30


async def test_an_outage_is_said_once_and_its_end_too(
    clock: Clock, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    inventory = cluster.inventory()
    async with following(cluster, inventory):
        await cluster.stop()
        await trio.sleep(200)
        assert not inventory.is_synced
        await cluster.start()
        await until(lambda: inventory.is_synced)
    said = [(record.levelname, record.name) for record in caplog.records if record.name.startswith("tagfs")]
    assert said == [("WARNING", "tagfs.cluster"), ("INFO", "tagfs.cluster")]
    assert "refused" in caplog.text


async def test_a_watch_is_put_together_from_any_pieces() -> None:
    lines = b"".join(
        json.dumps({"type": kind, "object": {"metadata": {"name": name, "resourceVersion": str(number)}}}).encode()
        + b"\n"
        for number, (kind, name) in enumerate([("ADDED", "a"), ("MODIFIED", "b"), ("DELETED", "c"), ("BOOKMARK", "")])
    )

    async def pieces(size: int) -> AsyncIterator[bytes]:
        for start in range(0, len(lines), size):
            await trio.lowlevel.checkpoint()
            yield lines[start : start + size]

    for size in (1, 7, 64, len(lines)):
        watch, seen = Watch(pieces(size)), []
        while changes := await watch.changes():
            seen += [(change.version, change.metadata and change.metadata.name, change.is_there) for change in changes]
        assert seen == [("0", "a", True), ("1", "b", True), ("2", "c", False), ("3", None, False)]


# -- pace


async def test_the_clients_own_limit(clock: Clock) -> None:
    allowance = Allowance(qps=5, burst=10)
    start, at = trio.current_time(), []
    for _ in range(30):
        await allowance.take()
        at.append(trio.current_time() - start)
    assert at[9] == 0
    assert at[10] == pytest.approx(0.2, abs=0.01)
    assert at[29] == pytest.approx(4, abs=0.01)
    await trio.sleep(3600)
    start = trio.current_time()
    for _ in range(10):
        await allowance.take()
    assert trio.current_time() == start


async def test_a_limit_of_nothing_is_none(clock: Clock) -> None:
    allowance = Allowance(qps=-1, burst=0)
    for _ in range(1000):
        await allowance.take()
    assert trio.current_time() == 0


async def test_a_client_keeps_to_its_limit(clock: Clock, cluster: FakeCluster) -> None:
    await KubernetesInventory(Kube(cluster.access, qps=1, burst=1)).keys()
    times = [request.at for request in cluster.requests]
    assert all(later - earlier > 0.99 for earlier, later in itertools.pairwise(times))


def test_backoff_grows_to_its_limit_and_is_jittered() -> None:
    backoff = Backoff(1, 30)
    waits = [backoff.next() for _ in range(200)]
    for at, expected in enumerate([1, 2, 4, 8, 16, 30, 30]):
        assert expected / 2 <= waits[at] <= expected
    assert len(set(waits)) > 150
    assert all(15 <= wait <= 30 for wait in waits[6:])
    backoff.reset()
    assert backoff.next() <= 1
    assert backoff.next(retry_after=100) >= 100
    assert backoff.next(retry_after=1e9) < 400


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ([(b"Retry-After", b"5")], b"", 5),
        ([(b"retry-after", b" 5 ")], b'{"details":{"retryAfterSeconds":9}}', 5),
        ([], b'{"details":{"retryAfterSeconds":9}}', 9),
        ([(b"Retry-After", b"soon")], b"", None),
        ([(b"Retry-After", b"Wed, 21 Oct 2015 07:28:00 GMT")], b"", 0),
        ([], b"", None),
    ],
)
def test_when_a_server_wants_to_be_asked_again(
    headers: list[tuple[bytes, bytes]], body: bytes, expected: float | None
) -> None:
    error = answers.refusal(429, headers, body)
    assert error.retry_after == expected
    assert answers.is_passing(error)


def test_which_errors_pass() -> None:
    passing = {status for status in range(400, 600) if answers.is_passing(answers.refusal(status, [], b""))}
    assert passing == {429, *range(500, 600)} - {501}
    assert answers.is_passing(ApiUnreachable(""))
    assert not answers.is_passing(AnswerInvalid(""))
    assert isinstance(answers.refusal(418, [], b""), ApiRefused)
