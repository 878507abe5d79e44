"""TLS for plugins: the options, the context, files that change, and what a failed handshake is called."""

import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
import warnings
from pathlib import Path

import pytest

from cqrs_brokers import ConfigError, InsecureTransportWarning, open_broker
from cqrs_brokers.options import resolve_options
from cqrs_brokers.tls import TLSContext, TLSOptions, tls_error
from cqrs_brokers.url import BrokerURL
from cqrs_brokers_testkit.certificates import Certificates, make_certificates

PASSPHRASE = "c4nary-passphrase"


def options(**keywords: object) -> TLSOptions:
    return resolve_options(
        TLSOptions, keywords={k: str(v) if isinstance(v, Path) else v for k, v in keywords.items()}
    ).options


def context(**keywords: object) -> TLSContext:
    problems: list[str] = []
    made = TLSContext(options(**keywords), problems)
    if problems:
        raise ConfigError(problems)
    return made


@pytest.fixture(scope="module")
def encrypted(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client's key, encrypted."""
    key = tmp_path_factory.mktemp("keys") / "client.key"
    command = ["openssl", "pkey", "-in", certificates.client_key, "-aes256", "-passout", f"pass:{PASSPHRASE}"]
    subprocess.run([*command, "-out", key], check=True, capture_output=True)
    return key


def handshake(
    client: TLSContext, certificates: Certificates, *, name: str = "localhost", asks: bool = False, trusts: str = "ca"
) -> BaseException | None:
    """What a handshake with a TLS server of the standard library raises in the client."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificates.server, certificates.server_key)
    if asks:
        server.verify_mode = ssl.CERT_REQUIRED
        server.load_verify_locations(getattr(certificates, trusts))

    def serve(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        try:
            with server.wrap_socket(raw, server_side=True) as peer:
                peer.sendall(b"x")
        except OSError:
            raw.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            with socket.create_connection(listener.getsockname()) as raw:
                with client.current().wrap_socket(raw, server_hostname=name) as peer:
                    peer.recv(1)  # with TLS 1.3 a refused client certificate shows only here
        except OSError as error:
            return error
        finally:
            thread.join()
    return None


def test_the_system_is_verified_against_by_default() -> None:
    """Certificate and host name are checked."""
    made = context().current()
    assert (made.check_hostname, made.verify_mode) == (True, ssl.CERT_REQUIRED)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    """Each file is named, and none of its content."""
    broken = tmp_path / "broken.pem"
    broken.write_text(PASSPHRASE)
    with pytest.raises(ConfigError) as caught:
        context(ssl_cafile=broken, ssl_certfile=broken)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "ssl_cafile cannot be used",
        "ssl_certfile and ssl_keyfile cannot be used",
    ]
    assert PASSPHRASE not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.timeout(20)
def test_a_pipe_without_a_writer_blocks_nobody(certificates: Certificates, tmp_path: Path) -> None:
    """To open it would block the process for ever: it is refused, as it is for a password."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    files = ({"ssl_cafile": pipe}, {"ssl_certfile": pipe}, {"ssl_certfile": certificates.client, "ssl_keyfile": pipe})
    for given in files:
        with pytest.raises(ConfigError, match="cannot be used: the file is not a regular file"):
            context(**given)


@pytest.mark.parametrize("given", ["keyword", "file", "environment"])
def test_an_encrypted_key_is_opened_with_its_password(
    certificates: Certificates, encrypted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """The password comes as a keyword, from a file or from the environment; the server then accepts the certificate."""
    (tmp_path / "passphrase").write_text(PASSPHRASE + "\n")
    monkeypatch.setenv("KEY_PASSPHRASE", PASSPHRASE)
    way = {
        "keyword": {"ssl_key_password": PASSPHRASE},
        "file": {"ssl_key_password_file": tmp_path / "passphrase"},
        "environment": {"ssl_key_password_env": "KEY_PASSPHRASE"},
    }[given]
    client = context(ssl_cafile=certificates.ca, ssl_certfile=certificates.client, ssl_keyfile=encrypted, **way)
    assert handshake(client, certificates, asks=True) is None


@pytest.mark.parametrize(
    ("password", "says"),
    [
        (None, "the private key is encrypted: give ssl_key_password=, ssl_key_password_file= or _env="),
        ("wrong", "ssl_key_password does not decrypt the private key"),
    ],
)
def test_an_encrypted_key_without_its_password(
    certificates: Certificates, encrypted: Path, password: str | None, says: str
) -> None:
    """OpenSSL does not ask on the terminal; the error says what is missing."""
    with pytest.raises(ConfigError) as caught:
        context(ssl_certfile=certificates.client, ssl_keyfile=encrypted, ssl_key_password=password)
    assert says in str(caught.value)


def test_a_replaced_authority_is_used_by_the_next_connection(certificates: Certificates, tmp_path: Path) -> None:
    """The file is replaced in place; unchanged files are not read again."""
    new = make_certificates(tmp_path / "new")
    trusted = tmp_path / "trusted.pem"
    shutil.copy(certificates.ca, trusted)
    client = context(ssl_cafile=trusted)
    first = client.current()
    assert handshake(client, certificates) is None
    assert isinstance(handshake(client, new), ssl.SSLCertVerificationError)
    assert client.current() is first
    shutil.copy(new.ca, trusted)
    assert handshake(client, new) is None
    assert client.current() is not first


def test_a_half_written_file_does_not_end_what_works(
    certificates: Certificates, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last good context stays, one warning is logged, and the whole file is used as soon as it is there."""
    trusted = tmp_path / "trusted.pem"
    shutil.copy(certificates.ca, trusted)
    client = context(ssl_cafile=trusted)
    first = client.current()
    trusted.write_text("-----BEGIN")
    assert client.current() is first
    assert client.current() is first
    assert [record.name for record in caplog.records] == ["cqrs_brokers.tls"]
    assert "ssl_cafile cannot be used" in caplog.text
    os.unlink(trusted)
    shutil.copy(certificates.ca, trusted)
    assert client.current() is not first
    assert handshake(client, certificates) is None


def test_a_file_that_becomes_readable_is_used(certificates: Certificates, tmp_path: Path) -> None:
    """A new file lands unreadable, and only its mode changes then."""
    new = make_certificates(tmp_path / "new")
    trusted = tmp_path / "trusted.pem"
    shutil.copy(certificates.ca, trusted)
    client = context(ssl_cafile=trusted)
    shutil.copy(new.ca, trusted)
    trusted.chmod(0o000)
    before = client.current()  # root can read the file all the same
    time.sleep(0.05)  # the file system may count its times in steps
    trusted.chmod(0o600)
    assert client.current() is not before
    assert handshake(client, new) is None


@pytest.mark.parametrize(
    ("serving", "says", "remedy"),
    [
        ("expired", "the certificate of h:1 has expired", "renew it on the server"),
        ("wrong_host", "the certificate of h:1 is for another host name", "connect by a host name that is in it"),
    ],
)
def test_a_bad_server_certificate_is_named(certificates: Certificates, serving: str, says: str, remedy: str) -> None:
    """What is wrong with it, and what to do."""
    error = handshake(context(ssl_cafile=certificates.ca), certificates.serving(serving))
    found = tls_error(error or RuntimeError(), "h:1", options())
    assert found is not None
    assert found.text.startswith(says)
    assert found.text.endswith(f": {remedy}")
    assert found.retryable is False


def test_an_authority_that_is_not_trusted_is_named(certificates: Certificates) -> None:
    """The text names the option."""
    error = handshake(context(ssl_cafile=certificates.other_ca), certificates)
    found = tls_error(error or RuntimeError(), "h:1", options())
    assert found is not None
    assert "is of an authority that is not trusted" in found.text
    assert found.remedy == "give that authority in ssl_cafile"
    assert found.text.endswith(f": {found.remedy}")


def test_a_missing_client_certificate_is_named(certificates: Certificates) -> None:
    """The server asks for one."""
    error = handshake(context(ssl_cafile=certificates.ca), certificates, asks=True)
    found = tls_error(error or RuntimeError(), "h:1", options())
    assert found is not None
    assert found.text.startswith("h:1 asks for a client certificate (")
    assert found.text.endswith("): give ssl_certfile and ssl_keyfile")


@pytest.mark.parametrize(
    ("which", "trusts", "says"),
    [
        ("client", "other_ca", "it is of an authority that the server does not trust"),
        ("expired", "ca", "it has expired: renew it"),
    ],
)
def test_a_refused_client_certificate_is_named(certificates: Certificates, which: str, trusts: str, says: str) -> None:
    """Expired, or of an authority that the server does not know."""
    files = {"ssl_certfile": getattr(certificates, which), "ssl_keyfile": getattr(certificates, f"{which}_key")}
    client = context(ssl_cafile=certificates.ca, **files)
    error = handshake(client, certificates, asks=True, trusts=trusts)
    found = tls_error(error or RuntimeError(), "h:1", options(**files))
    assert found is not None
    assert found.text.startswith(f"h:1 refused the client certificate in ssl_certfile: {says}")


@pytest.mark.parametrize("error", [ConnectionResetError(), ssl.SSLEOFError(), TimeoutError()])
def test_a_connection_that_just_ends_is_no_tls_error(error: Exception) -> None:
    """A node that restarts does the same."""
    assert tls_error(error, "h:1", options()) is None


def test_the_error_is_found_behind_what_a_client_made_of_it(certificates: Certificates) -> None:
    """Clients wrap what the operating system said."""
    error = handshake(context(ssl_cafile=certificates.other_ca), certificates)
    wrapped = RuntimeError("connection failed")
    wrapped.__cause__ = error
    assert tls_error(wrapped, "h:1", options()) is not None


@pytest.mark.parametrize(
    "url",
    [
        "amqp://u:p@broker.example/",
        "amqps://u:p@broker.example/?ssl_verify=false",
        "kafka://h?security_protocol=SSL&ssl_verify=false",
    ],
)
def test_a_warning_points_at_the_line_of_the_application(url: str) -> None:
    """Not into pluggy, core or the plugin."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_broker(url)
    assert [(warning.category, warning.filename) for warning in caught] == [(InsecureTransportWarning, __file__)]


def decided(text: str, problems: list[str] | None = None, **keywords: object) -> TLSContext | None:
    """What a plugin decides about TLS for acme:// (plain) and acmes://."""
    url = BrokerURL.parse(text)
    secure, secret = url.scheme == "acmes", url.password is not None
    return TLSContext.for_url(
        url, options(**keywords), problems or [], secure=secure, secret=secret, instead="write acmes://"
    )


def test_a_plugin_names_its_problems_and_those_of_tls_together() -> None:
    """One ConfigError has them all, in this order: the plugin's, contradictions, files that cannot be used."""
    with pytest.raises(ConfigError) as plain:
        decided("acme://host", ["there is no user"], ssl_cafile="/nowhere/ca.pem", require_tls=True)
    assert plain.value.problems[0] == "there is no user"
    assert [problem.rpartition(": ")[2] for problem in plain.value.problems[1:]] == ["write acmes://"] * 2
    with pytest.raises(ConfigError) as secure:
        decided("acmes://host", ["there is no user"], ssl_cafile="/nowhere/ca.pem")
    assert [problem.partition(" ")[0] for problem in secure.value.problems] == ["there", "ssl_cafile"]


def test_a_secret_in_plain_text_is_warned_about_unless_the_host_is_loopback() -> None:
    """The warning names the broker, without the secret, and what to write."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decided("acme://user:secret@localhost") is None
        assert decided("acme://example.org") is None
    with pytest.warns(InsecureTransportWarning, match="example.org.*plain text: write acmes://") as warned:
        assert decided("acme://user:s3cret@example.org") is None
    assert "s3cret" not in str(warned[0].message)


def test_a_server_that_is_not_verified_is_warned_about() -> None:
    """And the context is there all the same."""
    with pytest.warns(InsecureTransportWarning, match="not verified"):
        assert decided("acmes://localhost", ssl_verify=False) is not None
