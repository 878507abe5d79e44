"""Logs in with SCRAM-SHA-256 (RFC 5802, RFC 7677). Some servers, such as Apache Qpid, offer PLAIN only with TLS."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

__all__ = ["MECHANISM", "Scram"]

MECHANISM = "SCRAM-SHA-256"
_FEWEST_ITERATIONS, _MOST_ITERATIONS = 4096, 1_000_000


class _ScramError(ConnectionError):
    """A message of the server is wrong, cannot be read, or asks for parameters that are not acceptable."""


class Scram:
    """One SCRAM log-in, from the client's side.

    Args:
        user: The user's name.
        password: The password.
    """

    def __init__(self, user: str, password: str) -> None:
        self._password = password.encode()
        self._nonce = secrets.token_urlsafe(18)
        self._bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={self._nonce}"
        self._signature: bytes | None = None
        self.first = f"n,,{self._bare}"
        """The first message of the client."""

    def answer(self, challenge: str) -> str:
        """Answers a message of the server. The answer to the server's first message proves that we know the password.
        The server's last message proves that the server has the user's keys, which are derived from the password. This
        proof is verified, and the answer is empty.

        Raises:
            _ScramError: The message is wrong, cannot be read, or asks for parameters that are not acceptable.
        """
        try:
            fields = dict(part.split("=", 1) for part in challenge.split(","))
            return self._last(fields) if self._signature is not None else self._proof(challenge, fields)
        except (KeyError, ValueError):
            raise _ScramError("the server's SCRAM message cannot be read") from None

    def _proof(self, challenge: str, fields: dict[str, str]) -> str:
        nonce, salt, iterations = fields["r"], base64.b64decode(fields["s"]), int(fields["i"])
        if not nonce.startswith(self._nonce) or not _FEWEST_ITERATIONS <= iterations <= _MOST_ITERATIONS:
            raise _ScramError("the server's SCRAM parameters are not acceptable")
        salted = hashlib.pbkdf2_hmac("sha256", self._password, salt, iterations)
        final = f"c=biws,r={nonce}"
        signed = f"{self._bare},{challenge},{final}".encode()
        client_key = _hmac(salted, b"Client Key")
        proof = _xor(client_key, _hmac(hashlib.sha256(client_key).digest(), signed))
        self._signature = _hmac(_hmac(salted, b"Server Key"), signed)
        return f"{final},p={base64.b64encode(proof).decode()}"

    def _last(self, fields: dict[str, str]) -> str:
        if not hmac.compare_digest(base64.b64decode(fields["v"]), self._signature or b""):
            raise _ScramError("the server does not know the password")
        return ""


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(left, right, strict=True))
