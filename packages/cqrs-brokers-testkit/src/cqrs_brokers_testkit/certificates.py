"""Throw-away certificates for TLS tests, made with the `openssl` program. Use them only for tests."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Certificates", "ELSEWHERE", "make_certificates"]

ELSEWHERE = "elsewhere.invalid"
"""A host name that exists nowhere, by RFC 2606."""

_DAYS = 2


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files, all in one folder. Keys are not encrypted.

    Attributes:
        ca: The authority that signed all other certificates except `other_ca`.
        server: Server certificate for "localhost", 127.0.0.1 and ::1.
        server_key: The key of `server`.
        client: Client certificate with the common name "client".
        client_key: The key of `client`.
        expired: Server certificate like `server` that expired in the year 2001.
        expired_key: The key of `expired`.
        wrong_host: Server certificate for "elsewhere.invalid" only.
        wrong_host_key: The key of `wrong_host`.
        other_ca: An authority that signed none of these certificates.
    """

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    expired: Path
    expired_key: Path
    wrong_host: Path
    wrong_host_key: Path
    other_ca: Path

    def serving(self, which: str) -> "Certificates":
        """Return these certificates, with "expired" or "wrong_host" in the place of the server's certificate."""
        return Certificates(
            **{
                **vars(self),
                "server": getattr(self, which),
                "server_key": getattr(self, f"{which}_key"),
            }
        )


def make_certificates(folder: Path | str) -> Certificates:
    """Make an authority and certificates in `folder`, within about a second.

    Raises:
        FileNotFoundError: There is no `openssl` program.
        RuntimeError: `openssl` failed. The text has its output.
    """
    folder = Path(folder).resolve()  # servers run in folders of their own
    folder.mkdir(parents=True, exist_ok=True)
    loopback = "DNS:localhost,IP:127.0.0.1,IP:::1"
    ca, ca_key = _authority(folder, "ca")
    other_ca, _ = _authority(folder, "other_ca")
    server, server_key = _signed(folder, "server", ca, ca_key, names=loopback)
    client, client_key = _signed(folder, "client", ca, ca_key, names="DNS:client")
    expired, expired_key = _signed(folder, "expired", ca, ca_key, names=loopback, expired=True)
    wrong_host, wrong_host_key = _signed(folder, "wrong_host", ca, ca_key, names=f"DNS:{ELSEWHERE}")
    return Certificates(
        ca, server, server_key, client, client_key, expired, expired_key, wrong_host, wrong_host_key, other_ca
    )


def _authority(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", str(key), "-out", str(certificate), "-days", str(_DAYS), "-subj", f"/CN=cqrs-brokers {name}"),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    return certificate, key


def _signed(folder: Path, name: str, ca: Path, ca_key: Path, *, names: str, expired: bool = False) -> tuple[Path, Path]:
    certificate, key, request = folder / f"{name}.pem", folder / f"{name}.key", folder / f"{name}.csr"
    # RSA: Kafka's PEM key store wants PKCS#8, which openssl writes for both, and every TLS stack takes RSA
    _openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(request)),
        *("-subj", f"/CN={name}"),
    )
    extensions = folder / f"{name}.ext"
    extensions.write_text(
        f"[x]\nsubjectAltName={names}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    common = ("-in", str(request), "-out", str(certificate), "-extensions", "x", "-extfile", str(extensions))
    if expired:
        # Only `openssl ca` of the openssl 3.0 that distributions ship can set dates in the past.
        database, config = folder / f"{name}.db", folder / f"{name}.cnf"
        database.write_text("")
        config.write_text(
            f"[ca]\ndefault_ca=d\n[d]\ndatabase={database}\nnew_certs_dir={folder}\ndefault_md=sha256\n"
            "policy=p\nrand_serial=yes\n[p]\ncommonName=supplied\n"
        )
        _openssl(
            *("ca", "-batch", "-notext", "-config", str(config), "-cert", str(ca), "-keyfile", str(ca_key)),
            *("-startdate", "20000101000000Z", "-enddate", "20010101000000Z", *common),
        )
    else:
        _openssl("x509", "-req", "-CA", str(ca), "-CAkey", str(ca_key), "-CAcreateserial", "-days", str(_DAYS), *common)
    return certificate, key


def _openssl(*arguments: str) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            ["openssl", *arguments],  # noqa: S607
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        raise FileNotFoundError("no `openssl` program on PATH: install it to make test certificates") from None
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]} failed ({done.returncode}): {done.stderr.strip()}")
