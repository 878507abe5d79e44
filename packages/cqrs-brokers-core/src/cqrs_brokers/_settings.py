"""The numbers of a `Broker`: their defaults and ranges, for `Broker` itself and for the options of strings."""

from __future__ import annotations

from dataclasses import dataclass

from .exceptions import ConfigError

__all__ = ["DEFAULTS", "Settings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `Broker` takes besides the driver; its docstring explains each. Times are in seconds.

    Raises:
        ConfigError: A number is out of range.
    """

    delivery_timeout: float = 30.0
    connect_timeout: float = 10.0
    close_timeout: float = 10.0
    max_in_flight: int = 1000
    max_in_flight_bytes: int = 32 * 2**20
    max_message_bytes: int = 1_000_000
    retry_count: int | None = None
    retry_delay: float | None = None

    def __post_init__(self) -> None:
        positive = ("delivery_timeout", "connect_timeout", "max_in_flight", "max_in_flight_bytes", "max_message_bytes")
        values = {name: getattr(self, name) for name in positive}
        problems = [f"{name} must be above 0, not {value}" for name, value in values.items() if not value > 0]
        if not self.close_timeout >= 0:
            problems.append(f"close_timeout must be 0 or more, not {self.close_timeout}")
        if self.retry_count is not None and self.retry_count < 1:
            problems.append("retry_count must be at least 1: with 0 no connection would ever be tried")
        if problems:
            raise ConfigError(problems)


DEFAULTS = Settings()
