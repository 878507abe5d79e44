"""docs/reference/errors.md says about each error what the code does."""

import re
from pathlib import Path

import pytest

from cqrs_brokers import exceptions

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text()
SECTIONS = {title: text for title, _, text in (part.partition("\n") for part in PAGE.split("\n## ")[1:])}
ERRORS = [
    error
    for name in exceptions.__all__
    if issubclass(error := getattr(exceptions, name), exceptions.BrokerError) and error is not exceptions.BrokerError
]


def rows(section: str) -> dict[str, list[str]]:
    """The table of a section: its cells by the name in the first column."""
    table = [line.strip("|").split("|") for line in SECTIONS[section].splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in table}


def section_of(error: type[exceptions.BrokerError]) -> str:
    for base, section in (
        (exceptions.ConnectError, "Connecting"),
        (exceptions.DeliveryUnknownError, "Unknown"),
        (exceptions.DeliveryError, "Not delivered"),
        (exceptions.BrokerStateError, "The broker's state"),
        (exceptions.FlushTimeoutError, "The broker's state"),
        (exceptions.BrokerError, "Opening a broker"),
    ):
        if issubclass(error, base):
            return section
    raise AssertionError(error)


def test_the_tree_is_the_classes():
    """Each class once, under its base."""
    tree = re.search(r"```text\n(BrokerError\n.*?)```", PAGE, re.DOTALL)
    assert tree
    path: list[str] = []
    drawn: dict[str, str] = {}
    for line in tree[1].splitlines():
        match = re.fullmatch(r"([│├└─ ]*)(\w+)(?: \((\w+)\))?", line)
        assert match, line
        depth = len(match[1]) // 3
        path[depth:] = [match[2]]
        assert match[2] not in drawn
        drawn[match[2]] = path[depth - 1] if depth else ""
    bases = {error.__name__: error.__bases__[0].__name__ for error in ERRORS}
    assert drawn == {"BrokerError": ""} | bases


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_class_has_its_row_in_its_section(error):
    """With what it means, and what to do unless it is only a base."""
    for section in ("Opening a broker", "The broker's state", "Connecting", "Not delivered", "Unknown"):
        assert (error.__name__ in rows(section)) == (section == section_of(error)), section
    *_, meaning, action = rows(section_of(error))[error.__name__]
    assert len(meaning) > 20 or "Base of" in meaning
    assert len(action) > 5 or "Base of" in meaning


@pytest.mark.parametrize("section", ["Not delivered", "Unknown"])
def test_the_column_retryable_is_the_attribute(section):
    """For each row."""
    assert rows(section)
    for name, cells in rows(section).items():
        assert cells[0] == ("yes" if getattr(exceptions, name).retryable else "no"), name


def test_the_column_permanent_is_the_attribute():
    """Of connection errors; and what is retryable among them is said."""
    for name, cells in rows("Connecting").items():
        error = getattr(exceptions, name)
        assert cells[0] == ("yes" if error.permanent else "no"), name
        assert ("Retryable." in cells[1]) == error.retryable, name


def test_the_warning_is_there():
    """It is no error, and still public."""
    assert "InsecureTransportWarning" in rows("Warnings")
