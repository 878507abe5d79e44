"""The site has a place for everything that a reader looks for there."""

import pydoc
import re
import tomllib
from pathlib import Path

import cqrs_brokers

ROOT = Path(__file__).parents[2]


def test_the_changes_of_every_distribution_are_shown() -> None:
    """One section each, which takes the changelog from the distribution's folder."""
    page = (ROOT / "docs/reference/changes.md").read_text()
    shown = re.findall(r'^## (\S+)\n\n--8<-- "(\S+)/CHANGELOG\.md:3"$', page, re.MULTILINE)
    distributions = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))
    assert shown == [(name, name) for name in distributions]


def test_no_page_has_what_a_merge_left_behind() -> None:
    """No conflict marker stands in a page or in a changelog."""
    marker = re.compile(r"^(<{7} |={7}$|>{7} )", re.MULTILINE)
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("packages/*/*.md")]
    assert not [str(page.relative_to(ROOT)) for page in pages if marker.search(page.read_text())]


def test_the_python_page_lists_each_name_once() -> None:
    """A name that stands there twice has two anchors, and the search finds the wrong one."""
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference/api.md").read_text(), re.MULTILINE)
    assert len(listed) == len(set(listed))


def test_help_begins_with_what_an_application_needs() -> None:
    """`help(cqrs_brokers)` lists the names of an application before modules and classes, and all of them are there."""
    beginning, _, _ = pydoc.plain(pydoc.render_doc(cqrs_brokers)).partition("PACKAGE CONTENTS")
    listed = re.findall(r"^ {8}(\w+(?:, \w+)*)  +\w", beginning, re.MULTILINE)
    names = {name for line in listed for name in line.split(", ")}
    assert {"open_broker", "Broker", "Message", "Receipt", "SyncBroker", "lifespan", "Observer"} <= names
    assert names <= set(cqrs_brokers.__all__)


def test_every_logger_is_on_the_page_about_observing() -> None:
    """Of every distribution but the test kit, which logs to nobody's application."""
    page = (ROOT / "docs/how-to/observe.md").read_text()
    sources = [path for path in ROOT.glob("packages/*/src/**/*.py") if "cqrs_brokers_testkit" not in path.parts]
    names = {name for path in sources for name in re.findall(r"getLogger\(\"(cqrs_broker[\w.]+)\"\)", path.read_text())}
    assert len(names) > 10
    assert not [name for name in names if f"`{name}`" not in page]


def test_the_ranges_of_dependencies_are_those_of_the_distributions() -> None:
    """Of every distribution but those of this project, as its pyproject.toml has them."""
    page = (ROOT / "docs/reference/platforms.md").read_text()
    for path in sorted(ROOT.glob("packages/*/pyproject.toml")):
        project = tomllib.loads(path.read_text())["project"]
        needed = [project.get("dependencies", []), *project.get("optional-dependencies", {}).values()]
        foreign = [one for group in needed for one in group if not one.startswith("cqrs-brok")]
        missing = [one for one in foreign if f"`{one}`" not in page]
        assert not missing, project["name"]
        assert f"`{project['name']}`" in page
