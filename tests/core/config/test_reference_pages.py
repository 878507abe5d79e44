"""The reference pages of this part: their Python runs, their tables are what the code says."""

import re
from pathlib import Path

import pytest

from cqrs_brokers.options import BrokerOptions, describe_options
from cqrs_brokers.url import BrokerURL

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
PAGES = ["config-strings.md", "discovery.md"]
BLOCKS = [
    pytest.param(block, id=f"{page}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (REFERENCE / page).read_text(), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_the_code_of_the_pages_runs(block, capsys, monkeypatch):
    """Each block by itself; where a comment says what is printed, that is printed."""
    monkeypatch.delenv("CQRS_BROKERS_ENV", raising=False)
    exec(compile(block, "page", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out.splitlines()
    assert printed
    promised = re.findall(r"print\(.*\)  # (.*)", block)
    assert printed[: len(promised)] == promised


def test_the_table_of_options_is_the_model():
    """It cannot drift: each row is made from the model."""
    rows = [
        f"| `{item.name}` | {item.default} | {item.unit or ''} | {item.description} |"
        for item in describe_options(BrokerOptions)
    ]
    assert "\n".join(rows) in (REFERENCE / "config-strings.md").read_text()


def test_the_example_strings_parse():
    """Every string in the table of examples."""
    page = (REFERENCE / "config-strings.md").read_text()
    examples = re.findall(r"^\| `(\w+://[^`]*)`", page, re.MULTILINE)
    assert len(examples) == 5
    for example in examples:
        assert BrokerURL.parse(example).scheme in ("kafka", "amqp", "devnull")
