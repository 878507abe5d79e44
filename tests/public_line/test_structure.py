"""The line between modules: no cycles, and no public name that only its own module uses."""

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "packages" / "cqrs-brokers-core" / "src" / "cqrs_brokers"
PACKAGES = {path.parent.name: path.parent for path in sorted(ROOT.glob("packages/*/src/*/__init__.py"))}


def modules(package: Path) -> dict[str, ast.Module]:
    """The syntax trees of a package's modules, by dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text())
    return found


def imported(name: str, tree: ast.Module, known: dict[str, ast.Module], *, is_package: bool) -> set[str]:
    """The modules of the package that a module imports when it is imported, for type checkers too."""
    found = set()
    inside = {
        node
        for some in ast.walk(tree)
        if isinstance(some, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(some)
    }
    for node in ast.walk(tree):
        if node in inside or not isinstance(node, ast.ImportFrom):
            continue
        base = name.split(".")
        base = base[: len(base) - node.level + is_package] if node.level else []
        module = ".".join([*base, *filter(None, [node.module])])
        for alias in node.names:
            target = f"{module}.{alias.name}"
            found.add(target if target in known else module)
    return {target for target in found if target in known and target != name}


def test_core_has_no_import_cycle() -> None:
    """Not one, imports for type checkers included. The package itself only collects what its modules have."""
    trees = modules(CORE)
    graph = {
        name: imported(name, tree, trees, is_package=(CORE.parent / name.replace(".", "/")).is_dir())
        for name, tree in trees.items()
    }
    graph.pop("cqrs_brokers")
    assert sum(map(len, graph.values())) > 50
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("package", PACKAGES)
def test_lists_of_names_are_sorted(package: str) -> None:
    """Each `__all__`, of private modules too, so that a name is found at a glance."""
    for name, tree in modules(PACKAGES[package]).items():
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names = ast.literal_eval(node.value)
                assert names == sorted(set(names)), name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_long_file_says_why(package: str) -> None:
    """A module of more than 400 lines gives its reason in its docstring, and no other module does."""
    for path in PACKAGES[package].rglob("*.py"):
        text = path.read_text()
        reason = "longer than 400 lines because" in " ".join((ast.get_docstring(ast.parse(text)) or "").split())
        assert reason == (len(text.splitlines()) > 400), path


def members(tree: ast.Module, api: set[str]) -> set[str]:
    """What a module defines with a public name: functions, classes, methods and attributes, without what is API."""
    found = set()
    foreign = foreign_names(tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name not in api:
            if isinstance(node, ast.ClassDef) or not node.decorator_list:  # a decorator registers what it is given
                found.add(node.name)
            if isinstance(node, ast.ClassDef) and node.name[0] != "_" and not foreign & bases_of(node):
                found |= members_of(node)
    return {name for name in found if not name.startswith("_")}


def foreign_names(tree: ast.Module) -> set[str]:
    """Builtin errors, and what comes from modules that are not ours: who subclasses it implements its interface."""
    found = {"Exception"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.level or (node.module or "").startswith("cqrs_broker")):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
    return found - {"ABC", "Generic", "NamedTuple", "Protocol", "enum"}


def in_signatures(tree: ast.Module) -> set[str]:
    """The names in the annotations of a module: whoever calls a function gets, or gives, what they name."""
    found = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            annotation = getattr(node, name, None)
            if annotation is not None:
                found |= {part.id for part in ast.walk(annotation) if isinstance(part, ast.Name)}
                found |= {
                    part.value.strip("'")
                    for part in ast.walk(annotation)
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
    return found


def bases_of(node: ast.ClassDef) -> set[str]:
    """What a class derives from, by the first part of the dotted name."""
    return {ast.unparse(base).split("[")[0].split(".")[0] for base in node.bases}


def members_of(node: ast.ClassDef) -> set[str]:
    found = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and ast.unparse(inner.value) == "self":
            found.add(inner.attr)
    return found


@cache
def asked_by_tests() -> list[tuple[set[str], set[str]]]:
    """Of each module of tests: which modules it imports, by their last names, and which names it uses, as text too."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        tree = ast.parse(path.read_text())
        texts = {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        found.append(({name.rpartition(".")[2] for name in modules_of(tree)}, used(tree) | texts))
    return found


def modules_of(tree: ast.Module) -> set[str]:
    """The modules that a module imports, or from which it imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def used(tree: ast.Module) -> set[str]:
    """The names that a module imports, and the attributes that it reads."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found.update(alias.name for alias in node.names)
    return found


CALLED_FROM_OUTSIDE = {
    # `driver.Delivery`, a protocol, has these: drivers call them.
    "release",
    "confirm",
    "returned",
    # A pydantic model's own serializers ask these of what they are given.
    "field_name",
    "mode_is_json",
    # The event loop's timer calls it.
    "expire",
    # asyncio's task calls these of what it awaits.
    "get_loop",
    "add_done_callback",
    "result",
    "cancel",
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_public_name_of_a_private_module_is_used_by_another_module(package: str) -> None:
    """What only its own module needs begins with an underscore."""
    trees = modules(PACKAGES[package])
    private = {name: tree for name, tree in trees.items() if any(part.startswith("_") for part in name.split("."))}
    uses: dict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        for attribute in used(tree):
            uses[attribute].add(name)
    api = {name for name, modules_with in uses.items() if modules_with - set(private)}
    for imports, names in asked_by_tests():  # the tests of a module use what they ask of it
        if imports & {name.rpartition(".")[2] for name in private}:
            for name in names:
                uses[name].add("tests")
    # A method that a class of another module, or of core, has too is called through that: an interface.
    definitions: dict[str, set[str]] = defaultdict(set)
    for name, tree in (trees | modules(CORE)).items():
        for member in members(tree, set()):
            definitions[member].add(name)
    alone = {
        f"{name}: {member}"
        for name, tree in private.items()
        for member in members(tree, api) - CALLED_FROM_OUTSIDE - in_signatures(tree)
        if not uses[member] - {name} and definitions[member] <= {name}
    }
    assert not alone, "\n".join(sorted(alone))
