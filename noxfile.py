"""The commands of this workspace, for example `nox -s demo` and `nox -s tests`; `nox -l` lists all.

How to get nox is in README.md.

Each session makes its own environment. Those that run our code build every distribution as a wheel and install that, so
that what is tested is what would be published, not the source tree.
"""

from __future__ import annotations

import ast
import io
import os
import shutil
import sys
import tokenize
import zipfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["lint", "typing", "tests"]
nox.options.default_venv_backend = "virtualenv"
nox.options.error_on_missing_interpreters = True

ROOT = Path(__file__).parent
PACKAGES = sorted(ROOT.glob("packages/*/pyproject.toml"))
NAMES = [path.parent.name for path in PACKAGES]
SOURCES = [str(path.parent / "src") for path in PACKAGES]
EXAMPLES = sorted(path for path in ROOT.glob("examples/*") if path.is_dir())
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
BUILD_BACKEND = "hatchling>=1.24"

BROKERS = ["cqrs-broker-amqp", "cqrs-broker-devnull", "cqrs-broker-kafka", "cqrs-broker-memory"]
EVERYTHING = [
    "cqrs-brokers-cli",
    "cqrs-brokers-core",
    *BROKERS,
    "cqrs-broker-kafka[lz4,snappy,zstd]",
    "cqrs-brokers-opentelemetry[outbox]",
    "cqrs-brokers-outbox[postgresql,asyncpg,mariadb,sqlite]",
    "cqrs-brokers-python-cqrs",
    "cqrs-brokers-testkit[pytest,amqp,kafka]",
]


def group(name: str) -> tuple[str, ...]:
    """The requirements of a dependency group of the root pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


def write_constraints(folder: Path) -> Path:
    """A constraints file that takes our own distributions from the folder, never from a package index."""
    constraints = folder / "constraints.txt"
    wheels = {wheel.name.partition("-")[0].replace("_", "-"): wheel for wheel in folder.glob("*.whl")}
    assert sorted(wheels) == NAMES, f"built {sorted(wheels)}, expected {NAMES}"
    constraints.write_text("".join(f"{name} @ {wheel.resolve().as_uri()}\n" for name, wheel in wheels.items()))
    return constraints


def install(session: nox.Session, ours: list[str], *others: str) -> None:
    """Builds every distribution and installs `ours` (some of them, with extras) and what else is needed."""
    # Not session.create_tmp(): it sets TMPDIR, and tests that run pytest there would find this workspace's settings.
    folder = Path(session.virtualenv.location) / "wheels"
    if session.run_install("python", "--version", silent=True) is None:  # nox -R
        session.log("-R installs nothing: this runs what was installed the last time, not the files as they are now")
        return
    shutil.rmtree(folder, ignore_errors=True)
    session.install(BUILD_BACKEND)
    folders = [str(path.parent) for path in PACKAGES]
    pip = ("python", "-m", "pip", "--disable-pip-version-check")
    session.run_install(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), *folders)
    constraints = write_constraints(folder)
    # A reused environment may have the same version with an older content.
    session.run_install(*pip, "uninstall", "-y", *NAMES, silent=True)
    session.install("-c", str(constraints), *ours, *others)


# -- For everybody -----------------------------------------------------------------------------------------------------


@nox.session
def demo(session: nox.Session) -> None:
    """Runs the demo: one application, four brokers, chosen by the config string."""
    ours = [*BROKERS, "cqrs-brokers-outbox[sqlite]", "cqrs-brokers-python-cqrs", "cqrs-brokers-testkit[amqp,kafka]"]
    install(session, ours)
    session.run("python", "examples/demo/run.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Runs the tests; arguments after `--` go to pytest (`nox -s tests -- tests/core`)."""
    install(session, EVERYTHING, *group("test"), *group("typing"), *group("lint"))
    if not session.posargs:
        # Finds, or installs where that is allowed, the servers; in a test this could take longer than its time limit.
        # What is missing is for the tests themselves to say: they skip, or fail when CI=true.
        session.run("python", "-m", "cqrs_brokers_testkit.servers", success_codes=[0, 1])
    slowest = ("--durations=25", "--durations-min=5")
    session.run("python", "-m", "pytest", *slowest, *session.posargs, env={"PYTHONDONTWRITEBYTECODE": "1"})


# -- For those who change something ------------------------------------------------------------------------------------


@nox.session
def lint(session: nox.Session) -> None:
    """Checks style and common mistakes with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs, ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Checks the types of every distribution, of the examples and of this file: mypy, strict."""
    projects = [nox.project.load_toml(path) for path in ROOT.glob("examples/*/pyproject.toml")]
    needed = [line for project in projects for line in project["project"]["dependencies"]]
    install(session, EVERYTHING, *group("typing"), *group("test"), *needed, "nox")
    search = os.pathsep.join(SOURCES)  # the source tree, not the installed wheels
    session.run("mypy", "--strict", *SOURCES, "noxfile.py", env={"MYPYPATH": search})
    for example in EXAMPLES:  # a distribution, or a folder of scripts that import one another
        folder = str(example / "src" if (example / "src").is_dir() else example)
        session.run("mypy", "--strict", folder, env={"MYPYPATH": os.pathsep.join([*SOURCES, folder])})


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the documentation into site/; a broken link or reference is an error."""
    session.install(*group("docs"))
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def wheels(session: nox.Session) -> None:
    """Builds every distribution into dist/ and tries each alone, in an environment with only what it declares."""
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.install("build", "twine", BUILD_BACKEND)
    for name in NAMES:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(dist), f"packages/{name}", silent=True)
    archives = sorted(str(path) for path in dist.iterdir())
    session.run("twine", "check", "--strict", *archives)
    for wheel in sorted(dist.glob("*.whl")):
        check_content(session, wheel)
    constraints = write_constraints(dist)
    for name in session.posargs or NAMES:
        environment = Path(session.virtualenv.location) / "alone" / name
        shutil.rmtree(environment, ignore_errors=True)
        session.run("python", "-m", "venv", "--without-pip", str(environment), silent=True)
        python = str(environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
        pip = ("python", "-m", "pip", "--disable-pip-version-check", "--python", python)
        session.run(*pip, "install", "-q", "-c", str(constraints), name)
        session.run(*pip, "check", silent=True)
        # -I: nothing of this repository is on the path.
        session.run(python, "-I", "-W", "error", "tests/wheels/smoke.py", name, external=True)
    constraints.unlink()


@nox.session
def bench(session: nox.Session) -> None:
    """Measures speed on real servers: against other publishers, or `-- --against REF` against an earlier version."""
    if "--against" in session.posargs:
        install(session, ["cqrs-brokers-testkit[amqp,kafka]"])
        arguments = [argument for argument in session.posargs if argument != "--against"]
        session.run("python", "-m", "benchmarks.against", *arguments)
        return
    install(session, EVERYTHING, *group("test"), *group("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Publishes for a long time while servers are killed, paused and cut off; `-- amqp`, `-- kafka`, `-- outbox`."""
    install(session, EVERYTHING, *group("test"))
    if session.posargs[:1] == ["outbox"]:
        session.run("python", "-m", "soak", *session.posargs)
        return
    for broker in [arg for arg in session.posargs if arg in ("amqp", "kafka")] or ["amqp", "kafka"]:
        rest = [arg for arg in session.posargs if arg not in ("amqp", "kafka")]
        session.run("python", "-m", "soak", broker, *rest)


@nox.session
def versions(session: nox.Session) -> None:
    """Runs the tests with other servers, Pythons and the oldest dependencies; `-- NAME ...` runs some of them."""
    install(session, ["cqrs-brokers-testkit[amqp,kafka]"], "packaging")
    wheels_folder = Path(session.virtualenv.location) / "wheels"
    session.run("python", "-m", "versions", str(wheels_folder), *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Runs every case of the conformance suite against every mutant, and writes the page (an hour)."""
    install(session, EVERYTHING, *group("test"))
    session.run("python", "-m", "tests.conformance.documents", "mutants")


@nox.session
def lines(session: nox.Session) -> None:
    """Prints the code lines of each distribution: formatted by ruff, without blanks, comments and docstrings."""
    session.install(*group("lint"))
    folder = Path(session.create_tmp())
    total = 0
    for source in SOURCES:
        copy = folder / Path(source).parent.name
        shutil.rmtree(copy, ignore_errors=True)  # what was renamed since the last run would be counted twice
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        session.run("ruff", "format", "--quiet", "--config", str(ROOT / "pyproject.toml"), str(copy), silent=True)
        count = sum(code_lines(path.read_text()) for path in copy.rglob("*.py"))
        total += count
        print(f"{count:>7,}  {copy.name}")
    print(f"{total:>7,}  together")


def code_lines(text: str) -> int:
    """How many lines hold code. A statement of several lines counts each."""
    docstrings = set[int]()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    counted = set[int]()
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            counted |= set(range(token.start[0], token.end[0] + 1))
    return len(counted - docstrings)


def check_content(session: nox.Session, wheel: Path) -> None:
    """What every wheel has, and has not."""
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        metadata = archive.read(next(name for name in files if name.endswith(".dist-info/METADATA"))).decode()
    distribution = wheel.name.partition("-")[0]
    module = "cqrs_brokers" if distribution == "cqrs_brokers_core" else distribution
    problems = [
        f"no {wanted}"
        for wanted in (f"{module}/__init__.py", f"{module}/py.typed", ".dist-info/licenses/LICENSE")
        if not any(name.endswith(wanted) for name in files)
    ]
    problems += [
        f"{name} does not belong there" for name in files if not name.startswith((f"{module}/", f"{distribution}-"))
    ]
    requires = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: cqrs-broker")]
    requires = [line.partition(";")[0] for line in requires]  # without the marker: extra == '…'
    problems += [f"{line}: a sibling is required by range" for line in requires if "==" in line or "<" not in line]
    if problems:
        session.error(f"{wheel.name}: {'; '.join(problems)}")
