"""What a header of a message may say."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

__all__ = ["HeaderValue", "NO_HEADERS"]

HeaderValue = str | bytes | int | float | bool | None
"""What a header may say; `Capabilities.header_types` has which of these a broker carries."""

NO_HEADERS: Final[Mapping[str, HeaderValue]] = MappingProxyType({})
