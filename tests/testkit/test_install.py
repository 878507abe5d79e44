"""Finding and installing servers, without installing any: the real installation is what the live tests run on."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cqrs_brokers_testkit.servers import ServerUnavailable, kafka, rabbitmq
from cqrs_brokers_testkit.servers import _brokers as brokers
from cqrs_brokers_testkit.servers import _debian as debian
from cqrs_brokers_testkit.servers import _install as install


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing on it: an empty PATH and cache, no package manager."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    for variable in ("CQRS_TEST_RABBITMQ_HOME", "CQRS_TEST_KAFKA_VERSION"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(brokers, "find_rabbitmq", lambda folders: None)
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    """Put a program on the bare machine."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_without_rabbitmq_the_error_says_which_command_helps(bare: Path) -> None:
    """Without any package manager the command is Docker's, with the variable to set."""
    with pytest.raises(ServerUnavailable, match="RabbitMQ is not available") as caught:
        with rabbitmq(progress=lambda _: None):
            pass
    assert "docker run" in caught.value.command
    assert "CQRS_TEST_AMQP_URL" in caught.value.command


def test_apt_is_named_where_it_exists_but_must_not_be_used(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CQRS_TEST_INSTALL=0 apt is not called, and its command is what the error tells."""
    program(bare, "apt-get", f"echo called >> {bare}/called; exit 1")
    monkeypatch.setenv("CQRS_TEST_INSTALL", "0")
    with pytest.raises(ServerUnavailable) as caught:
        brokers.rabbitmq_installation(lambda _: None)
    assert caught.value.command == "sudo apt-get install -y rabbitmq-server"
    assert not (bare / "called").exists()


def test_without_java_the_error_says_which_packages_help(bare: Path) -> None:
    """Both missing packages are named in one command."""
    program(bare, "apt-get", "exit 1")
    with pytest.raises(ServerUnavailable, match="no Java 17") as caught:
        with kafka(progress=lambda _: None):
            pass
    assert caught.value.command == "sudo apt-get install -y default-jre-headless maven"


def test_a_failing_maven_is_told_with_its_last_line(bare: Path) -> None:
    """What Maven said last is in the error, and no half-filled folder stays."""
    program(bare, "java", "echo 'openjdk version \"21.0.1\"' >&2")
    program(bare, "mvn", "echo 'no route to repository'; exit 1")
    with pytest.raises(ServerUnavailable, match="no route to repository"):
        brokers.kafka_installation(lambda _: None)
    assert not (bare / "cache/cqrs-brokers/kafka-4.4.0/libs").exists()


def test_an_old_java_does_not_count(bare: Path) -> None:
    """Java 11 is as good as none."""
    program(bare, "java", "echo 'openjdk version \"11.0.1\"' >&2")
    with pytest.raises(ServerUnavailable, match="no Java 17"):
        brokers.kafka_installation(lambda _: None)


def test_a_docker_client_without_a_daemon_does_not_count(bare: Path) -> None:
    """docker info must succeed; where it does, the image is used."""
    program(bare, "docker", "exit 1")
    with pytest.raises(ServerUnavailable):
        brokers.rabbitmq_installation(lambda _: None)
    program(bare, "docker", "exit 0")
    assert brokers.rabbitmq_installation(lambda _: None).image == brokers.RABBITMQ_IMAGE
    assert brokers.kafka_installation(lambda _: None).image == brokers.KAFKA_IMAGE
    older = brokers.kafka_installation(lambda _: None, "3.9.1")
    assert (older.version, older.image) == ("3.9.1", "apache/kafka:3.9.1")


def test_services_are_barred_only_while_packages_are_installed(tmp_path: Path) -> None:
    """The policy forbids every start inside, and what was there before is restored."""
    policy = tmp_path / "policy-rc.d"
    with install._services_barred(policy):
        assert subprocess.run([policy], check=False).returncode == 101
    assert not policy.exists()
    policy.write_text("#!/bin/sh\nexit 0\n")
    policy.chmod(0o755)
    with install._services_barred(policy):
        assert subprocess.run([policy], check=False).returncode == 101
    assert subprocess.run([policy], check=False).returncode == 0


def test_one_process_installs_at_a_time(bare: Path) -> None:
    """A second process waits for the lock until the first lets go."""
    script = (
        "from cqrs_brokers_testkit.servers._install import install_lock\nwith install_lock(): print('in', flush=True)"
    )
    with install.install_lock():
        waiting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        time.sleep(0.7)
        assert waiting.poll() is None
    assert waiting.communicate(timeout=10)[0] == b"in\n"


def kafka_jars(folder: Path, version: str) -> None:
    """A folder that looks like an installed Kafka."""
    folder.mkdir(parents=True)
    (folder / f"kafka_2.13-{version}.jar").touch()


def test_the_version_of_kafka_can_be_chosen(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wanted version comes from the argument or the variable, and another one in KAFKA_HOME is not taken for it."""
    program(bare, "java", "echo 'openjdk version \"21.0.1\"' >&2")
    monkeypatch.setenv("KAFKA_HOME", str(bare / "home"))
    kafka_jars(bare / "home/libs", "4.0.0")
    kafka_jars(bare / "cache/cqrs-brokers/kafka-3.9.1/libs", "3.9.1")
    assert brokers.kafka_installation(lambda _: None).version == "4.0.0"
    assert brokers.kafka_installation(lambda _: None, "3.9.1").version == "3.9.1"
    monkeypatch.setenv("CQRS_TEST_KAFKA_VERSION", "3.9.1")
    assert brokers.kafka_installation(lambda _: None).version == "3.9.1"
    with pytest.raises(ServerUnavailable):
        brokers.kafka_installation(lambda _: None, "4.1.0")


def test_jars_of_another_version_are_fetched(bare: Path) -> None:
    """Maven is asked for the version that is wanted, and what must stay out is excluded."""
    program(bare, "java", "echo 'openjdk version \"21.0.1\"' >&2")
    # The fake keeps what it was asked for, and makes the folder as Maven would.
    copied = 'for a in "$@"; do case $a in -DoutputDirectory=*) out=${a#*=};; *pom.xml) pom=$a;; esac; done'
    script = f"{copied}; /bin/cp $pom {bare}/asked; /bin/mkdir $out; : > $out/kafka_2.13-3.9.1.jar"
    program(bare, "mvn", script)
    found = brokers.kafka_installation(lambda _: None, "3.9.1")
    assert (found.version, found.libs) == ("3.9.1", bare / "cache/cqrs-brokers/kafka-3.9.1/libs")
    assert "<artifactId>kafka_2.13</artifactId><version>3.9.1</version>" in (bare / "asked").read_text()
    brokers.qpid_installation(lambda _: None)
    asked = (bare / "asked").read_text()
    assert "<artifactId>qpid-broker</artifactId><version>10.1.0</version>" in asked
    assert "<exclusion><groupId>com.sleepycat</groupId><artifactId>je</artifactId></exclusion>" in asked


def test_the_home_of_rabbitmq_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts come from the folder that is named, and a folder without them is an error that names it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "epmd", "exit 0")
    scripts = tmp_path / "rabbitmq_server-9.8.7" / "sbin"
    scripts.mkdir(parents=True)
    for name in ("rabbitmq-server", "rabbitmqctl"):
        program(scripts, name, "exit 0")
    found = brokers.rabbitmq_installation(lambda _: None, scripts.parent)
    assert (found.server, found.version) == (scripts / "rabbitmq-server", "9.8.7")
    monkeypatch.setenv("CQRS_TEST_RABBITMQ_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(ServerUnavailable, match=r"nowhere has no sbin/rabbitmq-server"):
        brokers.rabbitmq_installation(lambda _: None)


def test_another_suite_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user is told that only root can enter the root of another suite, before anything is fetched."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ServerUnavailable, match="only root can enter"):
        brokers.rabbitmq_installation(lambda _: None, "debian:trixie")


def test_programs_of_a_root_see_the_shared_folders_only_there(tmp_path: Path) -> None:
    """A program runs in the root, sees the named folders under their paths, and no mount stays behind."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can enter a root")
    shared, root = tmp_path / "shared", tmp_path / "root"
    shared.mkdir()
    (shared / "note").write_text("here")
    for folder in ("bin", "lib", "lib64", "usr"):  # this machine's own programs, as another root
        root.joinpath(folder).mkdir(parents=True)
    inside = debian.DebianRoot("test", root)
    folders = [Path(folder) for folder in ("/bin", "/lib", "/lib64", "/usr") if Path(folder).exists()]
    command = inside.command(["/bin/sh", "-c", f"cat {shared}/note; ls /"], folders=[shared, *folders])
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("here")
    assert "etc" not in done.stdout.split()
    assert str(root) not in Path("/proc/mounts").read_text()
