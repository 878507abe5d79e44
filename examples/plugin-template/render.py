"""Makes a plugin out of `project/` and a variant: `python render.py networked acme ../cqrs-broker-acme`.

Standard library only.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
VARIANTS = ("networked", "in-process")
SUFFIX = ".in"


def render(variant: str, name: str, target: Path) -> list[Path]:
    """Writes the project of a plugin for `name://`.

    Args:
        variant: "networked", for a broker that is reached over a network and takes many messages at a time; or
            "in-process", for one that answers one call.
        name: The scheme: lower-case letters and digits, and single dashes in between. The distribution will be
            `cqrs-broker-` and this name.
        target: A folder that does not exist, or is empty.

    Returns:
        The files that were written.

    Raises:
        ValueError: The variant is unknown, or the name cannot be a scheme.
        FileExistsError: There is something in the folder.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise ValueError(f"{name!r} is not a name like acme or acme-queue")
    if variant not in VARIANTS:
        raise ValueError(f"{variant!r} is none of {', '.join(VARIANTS)}")
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty")
    values = {
        "name": name,
        "module": name.replace("-", "_"),
        "Class": "".join(part.capitalize() for part in name.split("-")),
        "tls_scheme": "",
    }
    if variant == "networked":
        values["tls_scheme"] = f'\n"{name}+tls" = "cqrs_broker_{values["module"]}"'
    written = []
    folders = (HERE / "project", HERE / "variants" / variant)
    sources = [(path, folder) for folder in folders for path in folder.rglob(f"*{SUFFIX}") if path.is_file()]
    for source, folder in sorted(sources):
        relative = fill(str(source.relative_to(folder)), values).removesuffix(SUFFIX)
        file = target / relative
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(fill(source.read_text(encoding="utf-8"), values), encoding="utf-8")
        written.append(file)
    return list(dict.fromkeys(written))  # a variant may replace a file of the project


def fill(text: str, values: dict[str, str]) -> str:
    """Puts the values in the place of `{{their name}}`.

    Raises:
        KeyError: A placeholder has no value.
    """
    return re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(f"usage: python render.py {'|'.join(VARIANTS)} NAME FOLDER")
    try:
        written = render(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    except (ValueError, FileExistsError) as error:
        sys.exit(str(error))
    for path in written:
        print(path)
