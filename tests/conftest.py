"""Fixtures for the tests of core and of drivers."""

import socket
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], list[str]]]:
    """What a name resolves to, beside the real names."""
    known: dict[str, Callable[[], list[str]]] = {}
    real = socket.getaddrinfo

    def resolve(host: Any, port: Any, *arguments: Any, **keywords: Any) -> Any:
        if host not in known:
            return real(host, port, *arguments, **keywords)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port))) for address in known[host]()]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return known
