"""What is API and what is not: public modules, their names, who imports what, and the pages that list them."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    source.name: source
    for source in ROOT.glob("packages/*/src/*")
    if source.is_dir() and (source / "__init__.py").exists()
}
# Whose modules are all public or begin with "_".
DRAWN = [
    "cqrs_broker_amqp",
    "cqrs_broker_devnull",
    "cqrs_broker_kafka",
    "cqrs_broker_memory",
    "cqrs_brokers",
    "cqrs_brokers_cli",
    "cqrs_brokers_opentelemetry",
    "cqrs_brokers_python_cqrs",
    "cqrs_brokers_testkit",
]
SEVERAL = {"cqrs_brokers", "cqrs_brokers_opentelemetry", "cqrs_brokers_testkit"}
"""Those with more than one public module."""


def public_modules(package: str) -> list[str]:
    """The package and its modules of which no part begins with an underscore."""
    found = [package]
    for info in pkgutil.walk_packages([str(PACKAGES[package])], f"{package}."):
        if not any(part.startswith("_") for part in info.name.split(".")):
            found.append(info.name)
    return found


def public_names(module: str) -> list[str]:
    """Its `__all__`."""
    return list(importlib.import_module(module).__all__)


def ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def imports(source: str, where: str) -> Iterator[tuple[str, str | None]]:
    """Module and name of everything of ours that the source imports."""
    for node in ast.walk(ast.parse(source, where)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if ours(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and ours(node.module):
            yield from ((node.module, alias.name) for alias in node.names)


def sources() -> list[tuple[str, Path]]:
    """Every module outside core, with its package; for examples and the template a package of nobody."""
    listed = [
        (name, path) for name, folder in PACKAGES.items() if name != "cqrs_brokers" for path in folder.rglob("*.py")
    ]
    examples = [path for path in (ROOT / "examples").rglob("*") if path.name.endswith((".py", ".py.in"))]
    listed += [("", path) for path in examples if ".venv" not in path.parts and path.is_file()]
    return sorted(listed, key=lambda item: item[1])


@pytest.mark.parametrize(("package", "path"), sources(), ids=lambda value: str(value)[len(str(ROOT)) :] or None)
def test_only_public_names_of_other_distributions_are_imported(package: str, path: Path) -> None:
    """Plugins, bridge, test kit, examples and the template: public modules, and names in their `__all__`."""
    text = path.read_text()
    if path.suffix == ".in":
        text = re.sub(r"\{\{\w+\}\}", "name", text)
    for module, name in imports(text, str(path)):
        if module.partition(".")[0] == package:
            continue
        assert module in public_modules(module.partition(".")[0]), f"{path}: {module} is not public"
        if name is not None and f"{module}.{name}" not in public_modules(module.partition(".")[0]):
            assert name in public_names(module), f"{path}: {module} does not make {name} public"


@pytest.mark.parametrize("module", [module for package in DRAWN for module in public_modules(package)])
def test_a_public_module_lists_its_names(module: str) -> None:
    """Sorted, complete in the sense that each exists, and none begins with an underscore."""
    names = importlib.import_module(module).__all__
    assert list(names) == sorted(set(names))
    for name in names:
        assert not name.startswith("_")
        assert hasattr(importlib.import_module(module), name), name


def test_every_error_can_be_imported_from_the_top() -> None:
    """`cqrs_brokers` has all names of `cqrs_brokers.exceptions`."""
    top, errors = (set(importlib.import_module(name).__all__) for name in ("cqrs_brokers", "cqrs_brokers.exceptions"))
    assert errors <= top


def test_plugins_have_one_public_module() -> None:
    """What a user imports is in the package itself."""
    for package in sorted({*DRAWN} - SEVERAL):
        assert public_modules(package) == [package]


def test_the_checklist_for_plugins_names_the_public_modules_of_core() -> None:
    """No more and no less."""
    page = (ROOT / "docs/how-to/publish-a-plugin.md").read_text()
    listed = re.search(r"You import core's public modules \((.*?)\)", page, re.DOTALL)
    assert listed is not None
    names = re.findall(r"`([\w.]+)`", listed[1])
    assert [name if name[0] != "." else f"cqrs_brokers{name}" for name in names] == public_modules("cqrs_brokers")


def shown() -> list[object]:
    """What docs/reference/api.md shows, with a module's `members`."""
    page = (ROOT / "docs/reference/api.md").read_text()
    found: list[object] = []
    for path, options in re.findall(r"^::: ([\w.]+)\n((?:    .*\n)*)", page, re.MULTILINE):
        members = re.search(r"members: \[(.*?)\]", options)
        try:
            module = importlib.import_module(path)
        except ModuleNotFoundError:
            parent, _, name = path.rpartition(".")
            found.append(getattr(importlib.import_module(parent), name))
            continue
        found += [getattr(module, name) for name in (members[1].split(", ") if members else module.__all__)]
    return found


@pytest.mark.parametrize("package", sorted(name for name in PACKAGES if name != "cqrs_brokers_testkit"))
def test_the_api_page_shows_every_public_name(package: str) -> None:
    """Of every public module; a name that several modules give is shown once."""
    listed = shown()
    missing = []
    for module in [package] if package not in DRAWN else public_modules(package):
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            if not any(value is one for one in listed) and name not in UNSHOWN:
                missing.append(f"{module}.{name}")
    assert missing == []


# A module that is an attribute of its package, the marker of hooks (a sentence of the page), and aliases of types.
UNSHOWN = {"broker_options", "exceptions", "hookimpl", "inspect_broker", "open_message_broker", "protocol"}
