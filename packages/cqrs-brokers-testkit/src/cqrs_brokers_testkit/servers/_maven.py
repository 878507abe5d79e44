"""Finds Java, and fetches jars from Maven Central. Apache Kafka and Apache Qpid come to this machine in this way."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from cqrs_brokers_testkit.servers._install import Progress, install_lock, may_install, reason_of, run

__all__ = ["find_java", "jars"]

OLDEST_JAVA = 17


def find_java() -> Path | None:
    """Return the `java` of JAVA_HOME, else of the PATH, of version 17 or newer. None: there is no such Java."""
    home = os.environ.get("JAVA_HOME")
    places = ([str(Path(home) / "bin" / "java")] if home else []) + [shutil.which("java") or ""]
    for java in filter(None, places):
        try:
            done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
        except (OSError, subprocess.TimeoutExpired):
            continue
        match = re.search(r'version "(\d+)', done.stderr)
        if match and int(match[1]) >= OLDEST_JAVA:
            return Path(java)
    return None


def jars(
    title: str,
    coordinates: Mapping[str, str],
    libs: Path,
    progress: Progress,
    *,
    without: Sequence[str] = (),
) -> tuple[Path | None, str]:
    """Fetch jars with all their dependencies, if that is possible and allowed. Does nothing if the jars are there.

    Args:
        title: The name of the software, for progress.
        coordinates: Version by `group:artifact`.
        libs: The folder for the jars. The folder appears whole or not at all.
        progress: Called with each line of progress.
        without: Dependencies to leave out, as `group:artifact`.

    Returns:
        The folder, or None. And the reason why Maven failed, or "".
    """
    if any(libs.glob("*.jar")):
        return libs, ""
    maven = shutil.which("mvn")
    if maven is None or not may_install():
        return None, ""
    try:
        with install_lock():
            if not any(libs.glob("*.jar")):  # another process may have fetched them while we waited
                progress(f"fetching {title} with Maven (once, about 45 MB) ...")
                _copy(maven, _pom(coordinates, without), libs)
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"Maven could not fetch it: {reason_of(error)}"
    return libs, ""


def _copy(maven: str, pom: str, libs: Path) -> None:
    libs.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=libs.parent) as folder:
        project, copied = Path(folder, "pom.xml"), Path(folder, "libs")
        project.write_text(pom)
        run([maven, "-B", "-q", "-f", str(project), "dependency:copy-dependencies", f"-DoutputDirectory={copied}"])
        copied.rename(libs)


def _pom(coordinates: Mapping[str, str], without: Sequence[str]) -> str:
    left_out = "".join(f"<exclusion>{_named(name)}</exclusion>" for name in without)
    dependencies = "".join(
        f"<dependency>{_named(name)}<version>{version}</version><exclusions>{left_out}</exclusions></dependency>"
        for name, version in coordinates.items()
    )
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>cqrs-brokers</groupId><artifactId>servers</artifactId><version>1</version><packaging>pom</packaging>"
        f"<dependencies>{dependencies}</dependencies></project>\n"
    )


def _named(name: str) -> str:
    group, _, artifact = name.partition(":")
    return f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
