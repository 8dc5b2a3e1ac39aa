"""Plan and guard: what may be deleted, whatever is there, whatever is told, and in whatever order it happens."""

from hypothesis import example, given
from hypothesis import strategies as st

from tagfs.guard import SMALL, WINDOW, Guard
from tagfs.names import RepositoryKey
from tagfs.plan import Disk, Plan, Rules, plan


def keys(count: int, namespace: str = "team") -> frozenset[RepositoryKey]:
    return frozenset(RepositoryKey(namespace, f"r{number}") for number in range(count))


A, B, C = (RepositoryKey("a", "x"), RepositoryKey("a", "y"), RepositoryKey("b", "x"))

names = st.builds(RepositoryKey, st.sampled_from(["a", "b", "c"]), st.sampled_from([f"r{n}" for n in range(12)]))
sets = st.frozensets(names)
rules = st.builds(Rules, st.integers(0, 100), st.booleans(), st.booleans())


@st.composite
def disks(draw: st.DrawFn) -> Disk:
    lists = draw(sets)
    bare = draw(sets) - lists
    named = {key.namespace for key in lists | bare}
    return Disk(lists, bare, frozenset(named | draw(st.frozensets(st.sampled_from(["a", "b", "c", "d"])))))


# -- examples


def test_an_orphan_goes_with_its_namespace_and_the_living_stay() -> None:
    made = plan(Disk(frozenset({A, B, C}), namespaces=frozenset({"a", "b"})), frozenset({A, B}), Rules())
    assert made == Plan(delete=(C,), emptied=("b",))


def test_an_empty_namespace_goes_unless_a_key_is_expected_there() -> None:
    disk = Disk(frozenset({A}), namespaces=frozenset({"a", "b", "d"}))
    assert plan(disk, frozenset({A}), Rules()).prune == ("b", "d")
    assert plan(disk, frozenset({A, C}), Rules()).prune == ("d",)


def test_without_an_inventory_only_empty_namespaces_go() -> None:
    disk = Disk(frozenset({A}), frozenset({C}), frozenset({"a", "b", "d"}))
    assert plan(disk, None, Rules()) == Plan(prune=("d",))


def test_an_empty_inventory_holds_everything_unless_it_is_allowed() -> None:
    disk = Disk(frozenset({A}), frozenset({C}), frozenset({"a", "b"}))
    made = plan(disk, frozenset(), Rules())
    assert (made.delete, made.held) == ((), (A, C))
    assert made.refusal and "empty" in made.refusal
    assert plan(disk, frozenset(), Rules(allow_empty_inventory=True)).delete == (A, C)
    assert plan(Disk(), frozenset(), Rules()) == Plan()


def test_a_directory_without_a_list_is_an_orphan_that_the_guard_does_not_count() -> None:
    disk = Disk(keys(30), keys(40, "bare"), frozenset({"team", "bare"}))
    made = plan(disk, keys(30), Rules(), room=0)
    assert (made.delete, made.refusal) == (tuple(sorted(keys(40, "bare"))), None)


def test_a_sweep_that_would_delete_too_much_deletes_nothing() -> None:
    disk, guard = Disk(keys(30)), Guard(Rules())
    room = guard.room(30, 0.0)
    assert room == 15
    assert len(plan(disk, keys(15), Rules(), room=room).delete) == 15
    made = plan(disk, keys(14), Rules(), room=room)
    assert (len(made.delete), len(made.held)) == (0, 16)
    assert made.refusal and "16 of 30 lists" in made.refusal
    assert len(plan(disk, keys(14), Rules(allow_mass_deletion=True), room=room).delete) == 16


def test_a_small_store_and_the_flags_have_no_bound() -> None:
    assert Guard(Rules()).room(SMALL, 0.0) is None
    assert Guard(Rules()).room(SMALL + 1, 0.0) == 10
    assert Guard(Rules(max_percent=100)).room(1000, 0.0) is None
    assert Guard(Rules(allow_mass_deletion=True)).room(1000, 0.0) is None
    assert Guard(Rules(max_percent=0)).room(1000, 0.0) == 0


def test_deletions_count_for_an_hour() -> None:
    guard = Guard(Rules())
    assert guard.room(30, 0.0) == 15
    guard.reserve(10)
    for _ in range(10):
        guard.deleted(1.0)
    assert guard.room(20, 1.0) == 5, "thirty were there"
    assert guard.room(20, WINDOW + 0.5) == 5
    assert guard.room(20, WINDOW + 1.0) is None, "a small store by now"


def test_lists_that_come_and_go_all_day_are_no_mass_deletion() -> None:
    guard = Guard(Rules())
    for second in range(200):
        assert guard.room(30, float(second)) == 15
        guard.reserve(1)
        guard.deleted(float(second))
    assert guard.room(15, 200.0) == 0, "now they only go"


def test_what_people_delete_is_no_mass_deletion() -> None:
    guard = Guard(Rules())
    assert guard.room(100, 0.0) == 50
    assert guard.room(30, 1.0) == 15


def test_what_is_reserved_counts_until_it_is_given_back() -> None:
    guard = Guard(Rules())
    guard.reserve(40)
    assert guard.room(100, 0.0) == 10
    guard.given_back(30)
    assert guard.room(100, 0.0) == 40


def test_what_is_held_stays_held_until_it_is_no_orphan() -> None:
    guard, disk = Guard(Rules()), Disk(keys(100))
    guard.hold(keys(60))
    for now in (0.0, 10 * WINDOW):
        room = guard.room(100, now)
        assert room == 0, "what is held counts as if it went"
        made = plan(disk, keys(100) - keys(60), Rules(), guard.held, room)
        assert (made.delete, len(made.held)) == ((), 60)
        assert made.refusal and "still held" in made.refusal
    guard.keep_only(keys(10))
    assert guard.held == keys(10)
    assert guard.room(100, 0.0) == 40


def test_a_new_orphan_goes_beside_a_few_that_are_held() -> None:
    made = plan(Disk(keys(100) | {A}), keys(100) - keys(5), Rules(), keys(5), 10)
    assert (made.delete, made.held) == ((A,), tuple(sorted(keys(5))))


# -- properties


@given(disks(), st.none() | sets, rules, sets, st.none() | st.integers(0, 30))
@example(Disk(frozenset({A})), frozenset(), Rules(allow_empty_inventory=True), frozenset(), 0)
def test_nothing_but_an_orphan_is_ever_deleted(disk, inventory, ruled, held, room) -> None:
    made = plan(disk, inventory, ruled, held, room)
    orphans = disk.keys - inventory if inventory is not None else frozenset()
    assert set(made.delete) <= orphans
    assert set(made.delete) | set(made.held) == orphans
    assert not set(made.delete) & set(made.held)
    assert bool(made.held) == (made.refusal is not None)
    if not ruled.allow_mass_deletion:
        assert not set(made.delete) & held
        assert room is None or len(disk.lists & set(made.delete)) <= room
    if not inventory and not ruled.allow_empty_inventory:
        assert not made.delete


@given(disks(), st.none() | sets, rules)
def test_only_namespaces_without_a_key_are_pruned(disk, inventory, ruled) -> None:
    made = plan(disk, inventory, ruled)
    left = {key.namespace for key in disk.keys - set(made.delete)}
    assert not left & {*made.prune, *made.emptied}
    assert not {key.namespace for key in inventory or ()} & {*made.prune, *made.emptied}
    assert not {key.namespace for key in disk.keys} & set(made.prune)
    assert set(made.prune) <= disk.namespaces


steps = st.lists(
    st.one_of(
        st.tuples(st.just("later"), st.sampled_from([1.0, 60.0, 1799.0, 3599.0, 3600.0])),
        st.tuples(st.just("sweep"), st.integers(0, 80)),
        st.tuples(st.just("departs"), st.integers(0, 79)),
        st.tuples(st.just("stuck"), st.integers(0, 79)),
    ),
    max_size=60,
)


@given(steps, st.integers(21, 80), st.integers(0, 99))
@example([("departs", n) for n in range(80)], 80, 50)
@example([("sweep", 41), ("later", 3599.0), *[("departs", n) for n in range(80)], ("sweep", 0)], 80, 50)
@example([("sweep", 30), ("later", 3600.0), ("sweep", 0), ("later", 3600.0), ("sweep", 0)], 80, 50)
def test_no_more_than_the_share_goes_in_any_hour(steps, count, percent) -> None:
    """Sweeps whose inventory is `team/r0` up to a number, and departures, in any order, of a store that never grows."""
    guard, there, now = Guard(Rules(percent)), set(keys(count)), 0.0
    history = [(now, len(there))]
    gone: list[float] = []

    def delete(key: RepositoryKey) -> None:
        there.discard(key)
        guard.deleted(now)
        gone.append(now)
        history.append((now, len(there)))

    for what, number in steps:
        if what == "later":
            now += number
        elif what == "sweep":
            disk = Disk(frozenset(there))
            made = plan(disk, keys(number), Rules(percent), guard.held, guard.room(len(there), now))
            guard.keep_only(made.orphans)
            guard.hold(made.held if number else ())
            guard.reserve(len(made.delete))
            for key in made.delete:
                delete(key)
        else:
            key = RepositoryKey("team", f"r{number}")
            if key not in there or key in guard.held:
                continue
            room = guard.room(len(there), now)
            if room is not None and room < 1:
                guard.hold([key])
                continue
            guard.reserve(1)
            if what == "departs":
                delete(key)
            else:
                guard.given_back()
    for end in gone:
        before = [size for at, size in history if at <= end - WINDOW] or [count]
        if before[-1] > SMALL:
            in_the_hour = sum(1 for at in gone if end - WINDOW < at <= end)
            assert in_the_hour <= percent * before[-1] / 100


def test_a_mass_deletion_is_held_however_long_it_is_waited_for() -> None:
    """A stream of departures that stops at the bound is not continued by the hour's end."""
    guard, there = Guard(Rules()), set(keys(100))
    for second, key in enumerate(sorted(keys(100))):
        now = float(second)
        room = guard.room(len(there), now)
        assert room is not None
        if room > 0:
            guard.reserve(1)
            guard.deleted(now)
            there.discard(key)
        else:
            guard.hold([key])
    assert len(there) == 50
    for now in (4000.0, 8000.0, 100_000.0):
        room = guard.room(len(there), now)
        assert plan(Disk(frozenset(there)), frozenset({A}), Rules(), guard.held, room).delete == ()
