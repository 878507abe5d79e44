"""The tutorial shows the example's files as they are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "cqrs-broker-redis-streams"
PAGE = ROOT / "docs" / "tutorials" / "write-a-broker-plugin.md"

BLOCK = re.compile(r'^``` \{\.(?:python|toml) title="(?P<file>[^"]+)"\}\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)


def test_each_code_block_is_a_whole_file_of_the_example() -> None:
    """So that what the reader copies is what the other tests of this folder run."""
    blocks = {match["file"]: match["code"] for match in BLOCK.finditer(PAGE.read_text())}
    assert blocks == {file: (EXAMPLE / file).read_text() for file in blocks}


def test_no_file_of_the_example_is_missing() -> None:
    """A reader who copies all blocks has the whole plugin."""
    shown = {match["file"] for match in BLOCK.finditer(PAGE.read_text())}
    there = [path.relative_to(EXAMPLE) for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml")]
    assert shown == {str(path) for path in there if not str(path).startswith((".", "build"))}


def test_there_is_no_other_code_in_the_page() -> None:
    """A block without a title would be checked by nobody."""
    fences = re.findall(r"^ *```", PAGE.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(BLOCK.findall(PAGE.read_text()))
