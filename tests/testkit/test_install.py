"""Finding and installing servers, without installing any: the real installation is what the live tests run on."""

import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cqrs_brokers_testkit.servers import ServerUnavailable, install, kafka, rabbitmq


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with nothing on it: an empty PATH and cache, no package manager."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    monkeypatch.setattr(install, "_find_rabbitmq", lambda: None)
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
        install.rabbitmq_installation(lambda _: None)
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
        install.kafka_installation(lambda _: None)
    assert not (bare / "cache/cqrs-brokers/kafka-4.1.0/libs").exists()


def test_an_old_java_does_not_count(bare: Path) -> None:
    """Java 11 is as good as none."""
    program(bare, "java", "echo 'openjdk version \"11.0.1\"' >&2")
    with pytest.raises(ServerUnavailable, match="no Java 17"):
        install.kafka_installation(lambda _: None)


def test_a_docker_client_without_a_daemon_does_not_count(bare: Path) -> None:
    """docker info must succeed; where it does, the image is used."""
    program(bare, "docker", "exit 1")
    with pytest.raises(ServerUnavailable):
        install.rabbitmq_installation(lambda _: None)
    program(bare, "docker", "exit 0")
    assert install.rabbitmq_installation(lambda _: None).image == install.RABBITMQ_IMAGE
    assert install.kafka_installation(lambda _: None).image == install.KAFKA_IMAGE


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
    script = "from cqrs_brokers_testkit.servers import install\nwith install._install_lock(): print('in', flush=True)"
    with install._install_lock():
        waiting = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        time.sleep(0.7)
        assert waiting.poll() is None
    assert waiting.communicate(timeout=10)[0] == b"in\n"
