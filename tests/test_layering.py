"""Layering: the table of modules in docs/architecture.md is the order in which they import each other."""

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "tagfs"
ARCHITECTURE = PROJECT / "docs" / "architecture.md"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in ("__init__", "__main__"))

KINDS = {"pure", "blocking", "async"}
OWNERS = {"pyfuse3": {"operations", "libfuse"}, "zstandard": {"codec"}}
"""Packages that only some modules may import."""

WITHOUT_KIND = {"cli"}

_ROW = re.compile(r"^\|\s*(?P<modules>`[a-z_]+`(?:\s*,\s*`[a-z_]+`)*)\s*\|\s*(?P<kind>[a-z ,]*)\s*\|")


def table() -> dict[str, str]:
    """Module -> kind, in the order of the rows that begin with a module's name and its kind."""
    if not ARCHITECTURE.exists():
        pytest.skip("docs/architecture.md is not written yet")
    rows: dict[str, str] = {}
    for line in ARCHITECTURE.read_text().splitlines():
        row = _ROW.match(line)
        if row and (row["kind"].strip() in KINDS or set(re.findall("`([a-z_]+)`", row["modules"])) & WITHOUT_KIND):
            for module in re.findall("`([a-z_]+)`", row["modules"]):
                assert module not in rows, f"{module} is twice in the table"
                rows[module] = row["kind"].strip()
    return rows


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imports_of(module: str) -> set[str]:
    """Dotted names of all that a module imports, wherever in it; `tagfs.x` for `from tagfs import x`."""
    found = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            name = node.module or ""
            if name == "tagfs":
                found |= {f"tagfs.{alias.name}" for alias in node.names}
            else:
                found.add(name)
    return found


def kind_of(module: str) -> str | None:
    """The kind that the first paragraph of a module's docstring ends in."""
    docstring = ast.get_docstring(tree_of(module)) or ""
    match = re.search(r"\b(Pure|Blocking|Async)\.$", docstring.partition("\n\n")[0].strip())
    return match[1].lower() if match else None


def test_the_table_names_every_module_and_no_other() -> None:
    assert sorted(table()) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_those_above_it(module: str) -> None:
    order = list(table())
    assert module in order, f"{module} is not in the table of docs/architecture.md"
    above = set(order[: order.index(module)])
    own = {name.split(".")[1] for name in imports_of(module) if name.startswith("tagfs.")} & set(MODULES)
    assert own <= above, f"{module} imports {sorted(own - above)}, which the table has below it"


@pytest.mark.parametrize("module", MODULES)
def test_a_package_is_imported_only_by_its_owners(module: str) -> None:
    packages = {name.split(".")[0] for name in imports_of(module)}
    for package, owners in OWNERS.items():
        assert package not in packages or module in owners, f"{module} imports {package}"


@pytest.mark.parametrize("module", [module for module in MODULES if module not in WITHOUT_KIND])
def test_a_module_says_its_kind_in_its_first_line(module: str) -> None:
    assert kind_of(module) in KINDS, "the first paragraph of its docstring ends in Pure., Blocking. or Async."


@pytest.mark.parametrize("module", [module for module in MODULES if module not in WITHOUT_KIND])
def test_the_table_says_the_same_kind(module: str) -> None:
    assert table().get(module) == kind_of(module)


@pytest.mark.parametrize("module", MODULES)
def test_trio_is_only_in_async_modules(module: str) -> None:
    packages = {name.split(".")[0] for name in imports_of(module)}
    if kind_of(module) in ("pure", "blocking"):
        assert not packages & {"trio", "pyfuse3", "asyncio"}
        assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree_of(module)))


def test_a_pure_module_opens_nothing() -> None:
    for module in MODULES:
        if kind_of(module) == "pure":
            assert not imports_of(module) & {"socket", "subprocess", "shutil", "tempfile", "pathlib", "tagfs.disk"}
