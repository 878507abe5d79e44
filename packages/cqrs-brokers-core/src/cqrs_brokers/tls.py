"""TLS for plugins: declares the TLS options, makes the TLS context from them, and explains why a handshake failed.

    class AcmeOptions(TLSOptions):
        url_parts = frozenset({"userinfo", "hosts"})

    @hookimpl
    def open_message_broker(url, options):
        problems = []  # what else is wrong
        secure, secret = url.scheme == "acmes", url.password is not None
        tls = TLSContext.for_url(url, options, problems, secure=secure, secret=secret, instead="write acmes://")
        return AcmeDriver(url, options, tls)

A driver calls `TLSContext.current()` for each connection, so that it uses the newest certificate files.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import ssl
import stat
import warnings
from collections.abc import Iterator, Sequence
from typing import Self

from pydantic import model_validator

from .exceptions import ConfigError, InsecureTransportWarning, TLSError
from .options import BrokerOptions, option
from .secret import Secret
from .url import BrokerURL

__all__ = ["TLSContext", "TLSOptions", "tls_error", "warn_insecure_transport"]

logger = logging.getLogger("cqrs_brokers.tls")


class TLSOptions(BrokerOptions):
    """Options of a plugin whose broker can use TLS."""

    ssl_cafile: str | None = option(
        None, min_length=1, description="Certificates (PEM) of the trusted authorities; none: those of the system."
    )
    ssl_certfile: str | None = option(
        None, min_length=1, description="The client's own certificate (PEM), for mutual TLS."
    )
    ssl_keyfile: str | None = option(
        None, min_length=1, description="Its private key (PEM); none: the key is in `ssl_certfile`."
    )
    ssl_key_password: Secret | None = option(None, description="Decrypts the private key.")
    ssl_verify: bool = option(True, description="Verify the server's certificate and host name. `false` warns.")
    ssl_context: ssl.SSLContext | None = option(
        None, keyword_only=True, description="Takes the place of the other ssl_ options."
    )
    require_tls: bool = option(False, description="Refuse to open without TLS.")

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if self.ssl_certfile is None:
            alone = [name for name in ("ssl_keyfile", "ssl_key_password") if getattr(self, name) is not None]
            if alone:
                raise ValueError(f"{alone[0]} needs ssl_certfile")
        files = [name for name in self._given() if name != "ssl_context"]
        if self.ssl_context is not None and files:
            raise ValueError(f"ssl_context takes the place of {', '.join(files)}: give one or the other")
        return self

    def tls_problems(self, *, secure: bool, instead: str) -> list[str]:
        """Returns a sentence for each contradiction between the options and the transport, for a `ConfigError`.

        Args:
            secure: Whether the connection uses TLS.
            instead: What to write for a connection with TLS, for example "write amqps://".
        """
        if secure:
            return []
        problems = []
        if self._given():
            problems.append(f"{', '.join(self._given())} would be ignored without TLS: {instead}")
        if self.require_tls:
            problems.append(f"require_tls=true, and this is not TLS: {instead}")
        return problems

    def _given(self) -> list[str]:
        defaults = {name: field.default for name, field in type(self).model_fields.items() if name.startswith("ssl_")}
        return sorted(name for name, default in defaults.items() if getattr(self, name) != default)


class TLSContext:
    """Gives the `ssl.SSLContext` for the next connection. `current` reads the files of the options `ssl_cafile`,
    `ssl_certfile` and `ssl_keyfile` again when these files have changed. The password of the private key stays the
    same.

    Args:
        options: The TLS options. If `ssl_context` is set, that object is the context. If not, the context is made from
            the other options.
        problems: A list. If certificate files cannot be used, sentences that say why are added to the list.
    """

    def __init__(self, options: TLSOptions, problems: list[str]) -> None:
        self._options = options
        self._stamps = self._read_stamps()
        self._context = options.ssl_context or _build(options, problems)

    @classmethod
    def for_url(
        cls,
        url: BrokerURL,
        options: TLSOptions,
        problems: Sequence[str],
        *,
        secure: bool,
        secret: bool,
        instead: str,
    ) -> Self | None:
        """Checks the TLS options, and makes the TLS context if the connection uses TLS. Call this method in a plugin's
        `open_message_broker` after all other checks, also for a connection without TLS.

        Args:
            url: The config string. Its hosts decide whether a connection without TLS needs a warning.
            options: The validated options.
            problems: The problems that the other checks found, one sentence for each.
            secure: Whether the connection uses TLS.
            secret: Whether a password or token is sent.
            instead: What to write for a connection with TLS, for example "write acmes://".

        Returns:
            The context. None: `secure` is False.

        Raises:
            ConfigError: There are problems, a certificate file cannot be used, or an option contradicts the transport.
                The error lists all problems.

        Warns:
            InsecureTransportWarning: The server's certificate or host name is not verified, or a secret is sent in
                plain text to a host that is not loopback. The warning shows the line of the application that made the
                broker.
        """
        found = [*problems, *options.tls_problems(secure=secure, instead=instead)]
        tls = cls(options, found) if secure else None
        if found:
            raise ConfigError(found)
        if tls is not None:
            tls.warn_unverified()
        elif secret and not all(host.is_loopback for host in url.hosts):
            warn_insecure_transport(f"{url}: credentials and all messages are sent in plain text: {instead}")
        return tls

    def current(self) -> ssl.SSLContext:
        """The context for a new connection. If certificate files have changed and cannot be used, the result is the
        previous context, and a warning is logged once for each change. A file has changed if its modification time,
        size, inode or change time is another one. A new mode of the file (`chmod`) changes the change time."""
        stamps = self._read_stamps()
        if stamps != self._stamps:
            self._stamps = stamps
            problems: list[str] = []
            context = _build(self._options, problems)
            if problems:
                logger.warning(
                    "certificate files have changed and cannot be used, so the previous ones stay in use: %s",
                    "; ".join(problems),
                )
            else:
                self._context = context
        return self._context

    def warn_unverified(self) -> None:
        """Warns if the context does not verify the server. `for_url` calls this method.

        Warns:
            InsecureTransportWarning: The server's certificate or host name is not verified. The warning shows the line
                of the application that made the broker.
        """
        if self._context.verify_mode != ssl.CERT_REQUIRED or not self._context.check_hostname:
            which = "the ssl_context" if self._options.ssl_context is not None else "ssl_verify=false"
            warn_insecure_transport(
                f"the server's certificate or name is not verified ({which}): anybody between here and the server can "
                "read and change what is sent; give ssl_cafile= instead"
            )

    def __repr__(self) -> str:
        return "<TLSContext>"

    def _read_stamps(self) -> list[tuple[int, ...] | None]:
        options = self._options
        return [_stamp(file) for file in (options.ssl_cafile, options.ssl_certfile, options.ssl_keyfile)]


def _stamp(file: str | None) -> tuple[int, ...] | None:
    if file is None:
        return None
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


def _build(options: TLSOptions, problems: list[str]) -> ssl.SSLContext:
    try:
        if options.ssl_cafile is not None:
            _look_at(options.ssl_cafile)
        # None: the system's authorities. Reading them takes a while, so they are read only if there is no ssl_cafile.
        context = ssl.create_default_context(cafile=options.ssl_cafile)
    except (OSError, ValueError) as error:
        problems.append(f"ssl_cafile cannot be used: {_reason(error, 'it has no certificate in PEM form')}")
        context = ssl.create_default_context()
    if options.ssl_certfile is not None:
        asked = []

        def passphrase() -> str:  # without it, OpenSSL would ask on the terminal and wait
            asked.append(True)
            return "" if options.ssl_key_password is None else options.ssl_key_password.reveal()

        try:
            _look_at(options.ssl_certfile)
            _look_at(options.ssl_keyfile or options.ssl_certfile)
            context.load_cert_chain(options.ssl_certfile, options.ssl_keyfile, password=passphrase)
        except (OSError, ValueError) as error:
            reason = _reason(error, "one of them is no PEM file of that kind, or they do not belong together")
            if asked:
                reason = "the private key is encrypted: give ssl_key_password=, ssl_key_password_file= or _env="
                if options.ssl_key_password is not None:
                    reason = "ssl_key_password does not decrypt the private key"
            problems.append(f"ssl_certfile and ssl_keyfile cannot be used: {reason}")
    if not options.ssl_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _look_at(file: str) -> None:
    """Refuses everything but a regular file, because reading a pipe or a device could block for ever.

    Raises:
        OSError: The file is not a regular file, does not exist, or cannot be reached.
    """
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError(errno.EINVAL, "the file is not a regular file")


def _reason(error: Exception, of_the_content: str) -> str:
    if isinstance(error, ssl.SSLError):
        return of_the_content
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


_VERIFY_FAILURES = {
    9: "is not valid yet: compare the clocks of both machines",
    10: "has expired: renew it on the server",
    18: "is self-signed and not trusted: give it, or its authority, in ssl_cafile",
    19: "is of an authority that is not trusted: give that authority in ssl_cafile",
    20: "is of an authority that is not trusted: give that authority in ssl_cafile",
    23: "was revoked",
    62: "is for another host name: connect by a host name that is in it",
    64: "is for another address: connect by a host name that is in it",
}
"""The meanings of OpenSSL's verification results (`X509_V_ERR_…`). The text after a colon says what to do."""

_CERTIFICATE_ALERTS = {
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired: renew it",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it was revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is of an authority that the server does not trust, or damaged",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it has expired, or is of an authority that the server does not trust",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not of a kind that the server takes",
    "TLSV1_ALERT_UNKNOWN_CA": "it is of an authority that the server does not trust",
    "TLSV1_ALERT_ACCESS_DENIED": "the server gives its owner no access",
}
_CERTIFICATE_WANTED = frozenset(
    {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "SSLV3_ALERT_HANDSHAKE_FAILURE", "SSLV3_ALERT_BAD_CERTIFICATE"}
)

_NO_COMMON_VERSION = frozenset({"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"})


def tls_error(error: BaseException, where: str, options: TLSOptions) -> TLSError | None:
    """The `TLSError` for a connection attempt that failed because of TLS, or None when TLS was not the reason.

    If the server closes the connection during the handshake without giving a reason, the result is None, too: the
    server may be restarting.

    Args:
        error: The exception that the client raised. The causes and contexts of the exception are checked, too.
        where: The host and port, for the text.
        options: The TLS options of the connection.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            why = _VERIFY_FAILURES.get(cause.verify_code, "is not accepted: check ssl_cafile and the host name")
            what, _, remedy = why.partition(": ")
            return TLSError(f"the certificate of {where} {what} ({cause.verify_message})", remedy=remedy)
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return _handshake_failure(cause.reason or "handshake failed", where, options)
    return None


def _handshake_failure(reason: str, where: str, options: TLSOptions) -> TLSError:
    has_certificate = options.ssl_certfile is not None or options.ssl_context is not None
    if reason in _CERTIFICATE_ALERTS and has_certificate:
        own = "the client certificate in ssl_certfile" if options.ssl_certfile is not None else "the client certificate"
        return TLSError(f"{where} refused {own}: {_CERTIFICATE_ALERTS[reason]} ({reason})")
    if reason in _CERTIFICATE_WANTED and not has_certificate:
        text = f"{where} asks for a client certificate ({reason})"
        return TLSError(text, remedy="give ssl_certfile and ssl_keyfile")
    if reason in _NO_COMMON_VERSION:
        text = f"the TLS handshake with {where} failed, because both sides have no version of TLS in common ({reason})"
        return TLSError(text, remedy="compare the versions that they allow")
    remedy = "check whether this is its TLS port, and whether it asks for a client certificate"
    return TLSError(f"the TLS handshake with {where} failed ({reason})", remedy=remedy)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def warn_insecure_transport(text: str) -> None:
    """Warns, and shows the line of the application that made the broker. The line belongs to the nearest stack frame
    outside core, the python-cqrs bridge, pluggy, and packages whose name begins with `cqrs_broker_`.

    Warns:
        InsecureTransportWarning: With the text.
    """
    level = 1
    frame = inspect.currentframe()
    while frame is not None and _is_inside(str(frame.f_globals.get("__name__", ""))):
        frame = frame.f_back
        level += 1
    warnings.warn(text, InsecureTransportWarning, stacklevel=level)


def _is_inside(module: str) -> bool:
    package = module.partition(".")[0]
    return package in ("cqrs_brokers", "cqrs_brokers_python_cqrs", "pluggy") or package.startswith("cqrs_broker_")
