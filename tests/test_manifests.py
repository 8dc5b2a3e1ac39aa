"""Manifests: what a tree declares, and everything that it alone cannot tell, by file and line."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagfs import manifests
from tagfs.documents import DEPTH_LIMIT, documents
from tagfs.errors import InventoryIncomplete, ManifestInvalid, ManifestsChanging
from tagfs.manifests import Found, Manifests
from tagfs.names import RepositoryKey
from tagfs.patterns import Patterns

OBJECT = """\
apiVersion: image.toolkit.fluxcd.io/v1
kind: ImageRepository
metadata:
  name: {name}
  namespace: {namespace}
spec:
  image: registry.example/{name}
  interval: 5m
"""

Write = Callable[..., Path]


def an_object(name: str = "web", namespace: str = "team") -> str:
    return OBJECT.format(name=name, namespace=namespace)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return tmp_path / "tree"


@pytest.fixture
def write(tree: Path) -> Write:
    """Write a file below the tree."""

    def write(path: str, *contents: str) -> Path:
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("---\n".join(contents))
        return file

    return write


def read(*paths: Path, **arguments) -> Found:
    return Manifests([str(path) for path in paths], settled=0, **arguments).read()


def keys(*paths: Path, **arguments) -> set[str]:
    return {str(key) for key in read(*paths, **arguments).keys}


def refused(*paths: Path, **arguments) -> str:
    with pytest.raises(InventoryIncomplete) as caught:
        read(*paths, **arguments)
    return str(caught.value)


# -- what is declared


def test_every_object_of_every_document_of_every_file_is_declared(tree: Path, write: Write) -> None:
    write("a.yaml", an_object("a"), an_object("b"), "", "# nothing\n")
    write("deep/er/c.yml", "---\n" + an_object("c") + "...\n")
    write(
        "d.json",
        json.dumps(
            {
                "apiVersion": "image.toolkit.fluxcd.io/v1beta2",
                "kind": "ImageRepository",
                "metadata": {"name": "d", "namespace": "team"},
            },
            indent="\t",
        ),
    )
    assert keys(tree) == {"team/a", "team/b", "team/c", "team/d"}
    assert keys(tree / "a.yaml") == {"team/a", "team/b"}
    assert keys(tree / "a.yaml", tree / "deep") == {"team/a", "team/b", "team/c"}


def test_the_items_of_lists_are_declared(tree: Path, write: Write) -> None:
    indented = "".join(f"    {line}\n" for line in an_object("b").splitlines())
    write("a.yaml", f"apiVersion: v1\nkind: List\nitems:\n  -\n{indented}")
    write(
        "b.yaml",
        "apiVersion: image.toolkit.fluxcd.io/v1\nkind: ImageRepositoryList\nitems:\n"
        "- {apiVersion: image.toolkit.fluxcd.io/v1, kind: ImageRepository, metadata: {name: c, namespace: team}}\n",
    )
    item = {
        "apiVersion": "image.toolkit.fluxcd.io/v1",
        "kind": "ImageRepository",
        "metadata": {"name": "d", "namespace": "team", "annotations": {"emoji": "\U0001f600"}},
    }
    write("c.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": [item]}) * 2)
    assert keys(tree) == {"team/b", "team/c", "team/d"}


def test_other_objects_and_values_are_passed_over(tree: Path, write: Write) -> None:
    write(
        "other.yaml",
        "apiVersion: other.io/v1\nkind: ImageRepository\nmetadata: {name: x}\n",
        "apiVersion: image.toolkit.fluxcd.io/v1\nkind: ImagePolicy\nmetadata: {name: '${x}'}\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: '${y}'}\ndata: {kind: ImageRepository}\n",
    )
    write("values.yaml", "image: x\nmetadata:\n  name: {{ x }}\n")
    write("list.yaml", "- a\n- b\n")
    write("text.yaml", "only text\n")
    write("empty.yaml", "")
    write("readme.md", "kind: ImageRepository")
    write(".git/config.yaml", "::: no yaml")
    assert keys(tree) == set()


def test_anchors_and_merges_are_followed(tree: Path, write: Write) -> None:
    write(
        "a.yaml",
        "apiVersion: image.toolkit.fluxcd.io/v1\nkind: &kind ImageRepository\n"
        "metadata: {<<: &common {namespace: team, labels: &labels {a: b}}, name: a}\n"
        "spec: {labels: *labels}\n",
        "apiVersion: v1\nkind: List\nitems:\n"
        "- &first {apiVersion: image.toolkit.fluxcd.io/v1, kind: ImageRepository,\n"
        "          metadata: &m {name: b, namespace: t}}\n"
        "- *first\n"
        "- {<<: *first, metadata: {<<: [{name: nothing}, *m], name: c}}\n",
    )
    assert keys(tree) == {"team/a", "t/b", "t/c"}


def test_the_same_key_twice_is_one_and_is_told(tree: Path, write: Write) -> None:
    first, second = write("a.yaml", an_object()), write("b.yaml", "# a comment\n" + an_object())
    found = read(tree)
    key = RepositoryKey("team", "web")
    assert set(found.keys) == {key}
    assert found.repeated == {key: (f"{first}:1", f"{second}:2")}


def test_a_tree_without_any_is_empty(tree: Path) -> None:
    tree.mkdir()
    assert keys(tree) == set()


def test_a_link_to_a_file_or_to_a_directory_is_followed(tree: Path, write: Write, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.yaml").write_text(an_object("a"))
    write("b.yaml", an_object("b"))
    (tree / "linked").symlink_to(elsewhere)
    (tree / "c.yaml").symlink_to("b.yaml")
    assert keys(tree) == {"team/a", "team/b"}


def test_standard_input_is_read_once(tree: Path) -> None:
    calls = []

    def text() -> bytes:
        calls.append(1)
        return (an_object("a") + "---\n" + an_object("b")).encode()

    made = Manifests([], text=text, settled=0)
    assert {str(key) for key in made.read().keys} == {str(key) for key in made.read().keys} == {"team/a", "team/b"}
    assert calls == [1]
    rendered = json.dumps(
        {
            "apiVersion": "image.toolkit.fluxcd.io/v1",
            "kind": "ImageRepository",
            "metadata": {"name": "c", "namespace": "team"},
        }
    )
    assert keys(text=lambda: b"\xef\xbb\xbf" + rendered.encode()) == {"team/c"}


# -- which files count


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.yaml", "a.yaml", True),
        ("*.yaml", "deep/a.yaml", True),
        ("*.yaml", "a.yml", False),
        ("templates", "charts/web/templates/a.yaml", True),
        ("templates/", "charts/web/templates", True),
        ("clusters/prod", "clusters/prod/a.yaml", True),
        ("clusters/prod", "clusters/production/a.yaml", False),
        ("clusters/prod", "old/clusters/prod/a.yaml", False),
        ("/prod", "prod/a.yaml", True),
        ("/prod", "clusters/prod/a.yaml", False),
        ("./clusters/*/a.yaml", "clusters/x/a.yaml", True),
        ("clusters/*/a.yaml", "clusters/x/y/a.yaml", False),
        ("clusters/**/a.yaml", "clusters/x/y/a.yaml", True),
        ("clusters/**/a.yaml", "clusters/a.yaml", True),
        ("clusters/**", "clusters/x/y", True),
        ("a?.yaml", "ab.yaml", True),
        ("a?.yaml", "a/.yaml", False),
        ("[ab].yaml", "b.yaml", True),
        ("[!ab].yaml", "b.yaml", False),
        ("[!ab].yaml", "c.yaml", True),
        ("a+b.yaml", "a+b.yaml", True),
        ("[.yaml", "[.yaml", True),
        ("[z-a].yaml", "[z-a].yaml", True),
    ],
)
def test_patterns(glob: str, path: str, matches: bool) -> None:
    assert Patterns([glob]).match(path) is matches


@given(st.text(st.sampled_from("ab/*?[]!^-.\\+({"), max_size=12), st.text(st.sampled_from("ab/.-["), max_size=12))
def test_any_text_is_a_pattern(glob: str, path: str) -> None:
    Patterns([glob]).match(path)


def test_include_and_ignore_choose(tree: Path, write: Write) -> None:
    write("clusters/prod/a.yaml", an_object("a"))
    write("clusters/prod/charts/templates/b.yaml", "{{- if .Values.x }}\na: b: c\n")
    write("clusters/staging/c.yaml", an_object("c"))
    assert "templates/b.yaml" in refused(tree)
    assert keys(tree, ignore=["templates"]) == {"team/a", "team/c"}
    assert keys(tree, include=["clusters/prod"], ignore=["templates"]) == {"team/a"}
    assert keys(tree, include=["a.yaml", "c.yaml"]) == {"team/a", "team/c"}


# -- what the tree alone cannot tell


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("a: b: c\n", 1, "mapping values are not allowed"),
        ("a: 1\nb: [\n", 3, "did not find expected node content"),
        ("a: 1\n\tb: 2\n", 2, "found a tab"),
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is twice in the same mapping"),
        ("a: *nothing\n", 1, "nothing before is called &nothing"),
        ("a: 1\nb: \x01\n", 2, "control characters are not allowed"),
        (an_object().replace("  namespace: team\n", ""), 4, "without a namespace"),
        (an_object().replace("namespace: team", "namespace: ~"), 4, "without a namespace"),
        (an_object().replace("  name: web\n", "  generateName: web-\n"), 4, "without a name"),
        (an_object().partition("metadata")[0], 1, "without a namespace"),
        (an_object("${app}"), 4, r"the name '\$\{app\}' is a template"),
        (an_object(namespace="$(NS)"), 5, r"the namespace '\$\(NS\)' is a template"),
        (an_object(namespace='"{{ .Release.Namespace }}"'), 5, "the namespace .* is a template"),
        (an_object("{{ .Values.name }}"), 4, "the name is a template"),
        (an_object().replace("kind: ImageRepository", "kind: ${KIND}"), 2, "the kind .* is a template"),
        (an_object().replace("image.toolkit.fluxcd.io", "${GROUP}"), 1, "the apiVersion .* is a template"),
        (an_object().partition("\n")[2], 1, "without an apiVersion"),
        (an_object("123"), 4, "the name 123 is no string"),
        (an_object(namespace="on"), 5, "the namespace on is no string"),
        (an_object("!ref x"), 4, "the name x is no string"),
        (an_object("Web"), 4, "'Web' is no repository"),
        (an_object(namespace="a.b"), 4, "'a.b' is no namespace"),
        ("kind: List\nitems: 5\n", 2, "no sequence"),
        ("a: " + "[" * (DEPTH_LIMIT + 1), 1, "nested deeper"),
        ("# first\n" + an_object() + "---\n" + an_object("x") + "  a: [\n", 20, "did not find"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_an_error_with_its_file_and_line(
    tree: Path, write: Write, text: str, line: int, told: str
) -> None:
    write("good.yaml", an_object("good"))
    file = write("sub/bad.yaml", text)
    with pytest.raises(InventoryIncomplete, match=rf"^{file}:{line}: .*({told})"):
        read(tree)


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ('{"a": 1,\n "b": }', 2, "Expecting value"),
        ('{"a": 1}\n{"kind": 1, "kind": 2}', 2, "'kind' is twice"),
        ("// comment\n{}", 1, "Expecting value"),
        ("[" * 100_000, 1, "nested too deeply"),
        ('\n{"kind": "ImageRepository"}', 2, "without an apiVersion"),
        ('{"apiVersion": "image.toolkit.fluxcd.io/v1", "kind": "ImageRepository", "metadata": {"namespace": 5}}', 1,
         "the namespace 5 is no string"),
    ],
)  # fmt: skip
def test_json_too(tree: Path, write: Write, text: str, line: int, told: str) -> None:
    file = write("bad.json", text)
    with pytest.raises(InventoryIncomplete, match=rf"^{file}:{line}: .*{told}"):
        read(tree)


def test_several_problems_are_told_and_the_rest_is_counted(tree: Path, write: Write) -> None:
    for number in range(8):
        write(f"{number}.yaml", "a: b: c")
    told = refused(tree)
    assert told.count("mapping values") == 5
    assert told.endswith("and 3 more")


def test_what_is_no_text_and_no_file_is_an_error(tree: Path, write: Write) -> None:
    file = write("a.yaml", "")
    file.write_bytes(b"a: b\nc: \xff\n")
    assert refused(tree) == f"{file}:2: no UTF-8"
    file.unlink()
    os.mkfifo(file)
    assert refused(tree) == f"{file}: no regular file"
    file.unlink()
    file.symlink_to("nowhere")
    assert "No such file" in refused(tree)
    file.unlink()
    file.symlink_to("a.yaml")
    assert "Too many levels of symbolic links" in refused(tree)
    assert "No such file" in refused(tree / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_an_error(tree: Path, write: Write) -> None:
    file = write("sub/a.yaml", an_object())
    file.chmod(0)
    assert "Permission denied" in refused(tree)
    file.chmod(0o600)
    file.parent.chmod(0)
    assert "Permission denied" in refused(tree)
    file.parent.chmod(0o700)


def test_a_loop_of_links_is_an_error(tree: Path, write: Write) -> None:
    write("a/b/c.yaml", an_object())
    (tree / "a/b/up").symlink_to("../..")
    assert f"{tree}/a/b/up: a link to a directory that it is in" in refused(tree)
    assert keys(tree, ignore=["up"]) == {"team/web"}


def test_a_tree_that_links_multiply_has_an_end(tree: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "ENTRIES_LIMIT", 1000)
    for number in range(20):
        (tree / f"d{number}").mkdir(parents=True)
        for name in ("x", "y"):
            (tree / f"d{number}" / name).symlink_to(f"../d{number + 1}")
    (tree / "d20").mkdir()
    assert "more than 1000 files" in refused(tree)


def test_a_bomb_of_aliases_does_no_harm(tree: Path, write: Write) -> None:
    bomb = "a0: &a0 {kind: List, items: []}\n" + "".join(
        f"a{n}: &a{n} {{kind: List, items: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 30)
    )
    write("a.yaml", bomb + "kind: List\nitems: [" + ", ".join(["*a29"] * 10) + "]\n", an_object())
    write("b.yaml", "x: &x\n  <<: [*x, *x, *x]\nkind: List\nitems: &i [{kind: List, items: *i}]\n")
    began = time.process_time()
    assert keys(tree) == {"team/web"}
    assert time.process_time() - began < 1


def test_a_deep_tree_is_walked(tree: Path) -> None:
    deepest = f"{tree}{'/d' * 1500}"
    try:
        subprocess.run(["mkdir", "-p", deepest], check=True)
        Path(deepest, "a.yaml").write_text(an_object())
        assert keys(tree) == {"team/web"}
    finally:
        # Deeper than what pytest's own clean-up can remove.
        subprocess.run(["rm", "-rf", tree], check=True)


# -- kustomizations


@pytest.mark.parametrize("field", ["namespace", "namePrefix", "nameSuffix"])
@pytest.mark.parametrize("name", ["kustomization.yaml", "kustomization.yml", "Kustomization"])
def test_a_kustomization_above_that_renames_is_an_error(tree: Path, write: Write, field: str, name: str) -> None:
    file = write("apps/deep/web.yaml", an_object())
    setting = write(f"apps/{name}", f"resources:\n- deep\n{field}: other\n")
    told = refused(tree)
    assert told.startswith(f"{setting}:3: sets {field} over {file}:1; render them: kustomize build")
    setting.write_text(f"{field}: ''\n")
    assert keys(tree) == {"team/web"}


def test_a_kustomization_beside_is_none_of_its_business(tree: Path, write: Write) -> None:
    write("apps/web.yaml", an_object())
    write("other/kustomization.yaml", "namespace: other\nresources: [a.yaml]\n")
    write("appstore/kustomization.yaml", "namespace: other\n")
    assert keys(tree) == {"team/web"}


def test_an_overlay_that_reaches_a_base_and_renames_it_is_an_error(tree: Path, write: Write) -> None:
    write("base/web.yaml", an_object())
    write("base/kustomization.yaml", "resources: [web.yaml]\n")
    write("middle/kustomization.yaml", "resources: [../base]\n")
    setting = write("overlays/prod/kustomization.yaml", "namespace: prod\nresources:\n- ../../middle/\n")
    assert refused(tree).startswith(f"{setting}:1: sets namespace over ")
    setting.write_text("namePrefix: x-\nbases: [https://example.com/x, ../../base/web.yaml]\n")
    assert refused(tree).startswith(f"{setting}:1: sets namePrefix over ")
    assert keys(tree, ignore=["overlays"]) == {"team/web"}


def test_overlays_are_found_through_links(tree: Path, write: Write) -> None:
    write("base/web.yaml", an_object())
    (tree / "linked").symlink_to("base")
    write("prod/kustomization.yaml", "namespace: prod\nresources: [../linked]\n")
    assert "sets namespace over" in refused(tree)


def test_a_kustomization_is_seen_whatever_is_included(tree: Path, write: Write) -> None:
    write("apps/web.yaml", an_object())
    write("apps/kustomization.yaml", "namespace: other\n")
    assert "sets namespace" in refused(tree, include=["web.yaml"])
    assert keys(tree, ignore=["kustomization.yaml"]) == {"team/web"}


def test_a_kustomization_that_does_not_parse_is_an_error(tree: Path, write: Write) -> None:
    file = write("kustomization.yaml", "resources: [\n")
    assert refused(tree).startswith(f"{file}:2: ")


@pytest.mark.parametrize("path", ["./apps/web", "apps/web/", "/apps"])
def test_a_kustomization_of_flux_that_renames_is_an_error(tree: Path, write: Write, path: str) -> None:
    write("apps/web/web.yaml", an_object())
    setting = write(
        "clusters/apps.yaml",
        "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\n"
        "metadata: {name: apps, namespace: flux-system}\n"
        f"spec:\n  path: {path}\n  targetNamespace: prod\n",
    )
    assert refused(tree).startswith(f"{setting}:6: sets targetNamespace over ")
    setting.write_text(setting.read_text().replace(path, "./other"))
    assert keys(tree) == {"team/web"}
    setting.write_text(setting.read_text().replace("./other", "./"))
    assert keys(tree) == {"team/web"}, "the root of another repository"


# -- a tree that changes


def test_a_tree_that_was_just_changed_is_not_taken_for_whole(tree: Path, write: Write) -> None:
    file = write("sub/a.yaml", an_object())
    with pytest.raises(ManifestsChanging, match="a moment ago"):
        Manifests([str(tree)], settled=3600).read()
    future = time.time() + 10_000
    for path in (file, file.parent, tree):
        os.utime(path, (future, future))
    with pytest.raises(ManifestsChanging):  # their ctime is now all the same
        Manifests([str(tree)], settled=3600).read()
    assert keys(tree) == {"team/web"}


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "b/z.yaml").rename(tree / "a/z.yaml"),
        lambda tree: (tree / "a/a.yaml").write_text(an_object("changed")),
        lambda tree: (tree / "a/a.yaml").unlink(),
        lambda tree: (tree / "a/new.yaml").write_text(an_object("new")),
        lambda tree: (tree / "a").rename(tree / "c"),
    ],
)
def test_a_change_while_it_is_read_is_an_error(
    tree: Path, write: Write, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moves from a directory not read yet to one that has been read would be in neither."""
    write("a/a.yaml", an_object("a"))
    write("b/z.yaml", an_object("z"))
    real = os.listdir

    def listdir(path: str) -> list[str]:
        if path == str(tree / "b"):
            change(tree)
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(InventoryIncomplete):
        read(tree)


# -- at random

scalars = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(scalars, values, max_size=4))
def test_json_and_yaml_read_the_same(content: dict[str, object]) -> None:
    text = json.dumps(content, ensure_ascii=False)
    [by_json] = documents(text, is_json=True)
    assert isinstance(by_json.value, dict)
    assert set(by_json.value) == set(content)


@given(st.text(max_size=200), st.booleans())
def test_any_text_is_read_or_refused(text: str, is_json: bool) -> None:
    with suppress(ManifestInvalid):
        list(documents(text, is_json))
