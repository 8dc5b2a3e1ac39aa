"""Names: the grammar of keys, and that nothing else can become part of a path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs.errors import NameRefused
from tagfs.names import (
    NAMESPACE_LIMIT,
    REPOSITORY_LIMIT,
    RepositoryKey,
    check_namespace,
    check_repository,
    is_flux_temporary,
    is_namespace,
    is_repository,
)

LABELS = ["a", "0", "flux-system", "a-b", "a--b", "0a", "a0", "a" * NAMESPACE_LIMIT]
SUBDOMAINS = [*LABELS, "a.b", "a.b.c", "1.2.3", "a-b.c-d", "a" * REPOSITORY_LIMIT, ".".join(["a"] * 127)]
NOT_SUBDOMAINS = [
    "",
    "-",
    "-a",
    "a-",
    ".",
    "..",
    ".a",
    "a.",
    "a..b",
    "a.-b",
    "a-.b",
    "A",
    "a_b",
    "a b",
    "a/b",
    "../a",
    "a\n",
    "\na",
    "a\0",
    "é",
    "\u0661",
    "\udc80",
    "lost+found",
    "a" * (REPOSITORY_LIMIT + 1),
]


@pytest.mark.parametrize("name", LABELS)
def test_a_label_is_a_namespace(name: str) -> None:
    check_namespace(name)


@pytest.mark.parametrize("name", [*NOT_SUBDOMAINS, "a.b", "a" * (NAMESPACE_LIMIT + 1)])
def test_anything_else_is_no_namespace(name: str) -> None:
    assert not is_namespace(name)
    with pytest.raises(NameRefused, match="is no namespace"):
        RepositoryKey(name, "app")


@pytest.mark.parametrize("name", SUBDOMAINS)
def test_a_subdomain_is_a_repository(name: str) -> None:
    check_repository(name)


@pytest.mark.parametrize("name", NOT_SUBDOMAINS)
def test_anything_else_is_no_repository(name: str) -> None:
    assert not is_repository(name)
    with pytest.raises(NameRefused, match="is no repository"):
        RepositoryKey("apps", name)


@given(st.text(max_size=300))
def test_no_name_leaves_its_directory(name: str) -> None:
    if is_namespace(name) or is_repository(name):
        assert name.isascii()
        assert not set(name) & {"/", "\0"}
        assert not name.startswith(".")
        assert len(name.encode()) <= REPOSITORY_LIMIT


def test_a_long_name_is_judged_at_once() -> None:
    assert not is_repository("a" * 252 + "_")
    assert not is_repository("a-" * 126 + "_")
    assert not is_repository("a." * 126 + "_")


def test_a_key_and_its_paths() -> None:
    key = RepositoryKey("apps", "podinfo.v2")
    assert str(key) == "apps/podinfo.v2"
    assert key.directory == "imagerepository/apps/podinfo.v2"
    assert key.path == "imagerepository/apps/podinfo.v2/tags.txt"
    assert RepositoryKey.parse(str(key)) == key


@pytest.mark.parametrize("text", ["", "apps", "apps/", "/podinfo", "apps/pod/info", "apps/../x"])
def test_what_is_no_key_is_not_parsed(text: str) -> None:
    with pytest.raises(NameRefused):
        RepositoryKey.parse(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tags.txt1", True),
        ("tags.txt3141592653", True),
        ("tags.txt.gz27", True),
        ("tags.txt", False),
        ("tags.txt.gz", False),
        ("tags.txt.zst1", False),
        ("tags.txt1x", False),
        ("tags.txt-1", False),
        ("xtags.txt1", False),
        ("tags.txt\u0661", False),
    ],
)
def test_temporaries_of_flux_are_told_by_their_digits(name: str, expected: bool) -> None:
    assert is_flux_temporary(name) is expected
