"""Makes a plugin out of `project/`: `python render.py acme-queue ../cqrs-broker-acme-queue`. Standard library only."""

import re
import sys
from pathlib import Path

TEMPLATE = Path(__file__).parent / "project"
SUFFIX = ".in"


def render(name: str, target: Path) -> list[Path]:
    """Writes the project of a plugin for `name://`.

    Args:
        name: The scheme: lower-case letters and digits, and single dashes in between. The distribution will be
            `cqrs-broker-` and this name.
        target: A folder that does not exist, or is empty.

    Returns:
        The files that were written.

    Raises:
        ValueError: Not such a name.
        FileExistsError: There is something in the folder.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"{name!r} is not a name like acme or acme-queue")
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty")
    values = {
        "name": name,
        "module": name.replace("-", "_"),
        "Class": "".join(part.capitalize() for part in name.split("-")),
    }
    written = []
    for source in sorted(path for path in TEMPLATE.rglob(f"*{SUFFIX}") if path.is_file()):
        relative = fill(str(source.relative_to(TEMPLATE)), values).removesuffix(SUFFIX)
        file = target / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(fill(source.read_text(encoding="utf-8"), values), encoding="utf-8")
        written.append(file)
    return written


def fill(text: str, values: dict[str, str]) -> str:
    """Puts the values in the place of `{{their name}}`.

    Raises:
        KeyError: A placeholder has no value.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text)


if __name__ == "__main__":
    for path in render(sys.argv[1], Path(sys.argv[2])):
        print(path)
