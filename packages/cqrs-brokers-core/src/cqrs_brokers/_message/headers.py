"""The types of header values."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["HeaderValue", "NO_HEADERS"]

HeaderValue = str | bytes | int | float | bool | None
"""The types that a header's value may have. `Capabilities.header_types` says which of them a broker carries."""

NO_HEADERS: Final[Mapping[str, HeaderValue]] = MappingProxyType({})
