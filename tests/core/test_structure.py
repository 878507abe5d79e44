"""The line between modules: no cycles, and no public name that only its own module uses."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CORE = Path(__file__).parents[2] / "packages" / "cqrs-brokers-core" / "src" / "cqrs_brokers"


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


def members(tree: ast.Module, api: set[str]) -> set[str]:
    """What a module defines with a public name: functions, classes, methods and attributes, without what is API."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name not in api:
            found.add(node.name)
            if isinstance(node, ast.ClassDef) and "Exception" not in map(ast.unparse, node.bases):
                found |= members_of(node)
    return {name for name in found if not name.startswith("_")}


def members_of(node: ast.ClassDef) -> set[str]:
    found = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store) and ast.unparse(inner.value) == "self":
            found.add(inner.attr)
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
    # Its own tests ask it, case by case.
    "plainly_holds",
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


def test_a_public_name_of_a_private_module_is_used_by_another_module() -> None:
    """What only its own module needs begins with an underscore."""
    trees = modules(CORE)
    private = {name: tree for name, tree in trees.items() if any(part.startswith("_") for part in name.split("."))}
    uses: dict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        for attribute in used(tree):
            uses[attribute].add(name)
    api = {name for name, modules_with in uses.items() if modules_with - set(private)}
    # A method that a class of another module has too is called through that: an interface.
    definitions: dict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        for member in members(tree, set()):
            definitions[member].add(name)
    alone = {
        f"{name}: {member}"
        for name, tree in private.items()
        for member in members(tree, api) - CALLED_FROM_OUTSIDE
        if not uses[member] - {name} and definitions[member] <= {name}
    }
    assert not alone
