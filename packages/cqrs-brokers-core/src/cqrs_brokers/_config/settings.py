"""The settings of `Broker`. This module has the defaults and ranges for `Broker`'s keyword arguments and for the
options in config strings."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from cqrs_brokers.exceptions import ConfigError

__all__ = ["BrokerSettings", "DEFAULTS", "bounds"]

_DAY = 86_400.0

_BOUNDS: Final[dict[str, dict[str, float]]] = {
    "delivery_timeout": {"gt": 0, "le": _DAY},
    "connect_timeout": {"gt": 0, "le": _DAY},
    "close_timeout": {"ge": 0, "le": _DAY},
    "max_in_flight": {"ge": 1, "le": 10**6},
    "max_in_flight_bytes": {"ge": 1, "le": 2**40},
    "max_message_bytes": {"ge": 1, "le": 2**31 - 1},
    "retry_count": {"ge": 1, "le": 10**6},
    "retry_delay": {"gt": 0, "le": _DAY},
}


class BrokerSettings(NamedTuple):
    """The settings that `Broker` itself uses. `Broker`'s docstring says what each setting means."""

    delivery_timeout: float = 30.0
    connect_timeout: float = 10.0
    close_timeout: float = 10.0
    max_in_flight: int = 2500
    max_in_flight_bytes: int = 80 * 2**20
    max_message_bytes: int = 1_000_000
    retry_count: int | None = None
    retry_delay: float | None = None

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ConfigError: A number is too small, or is NaN.
            TypeError: A value is not a number.
        """
        problems = []
        for name, bound in _BOUNDS.items():
            value = getattr(self, name)
            if value is None and getattr(DEFAULTS, name) is None:
                continue
            # Negated, so that NaN is refused. Only `BrokerOptions` has the upper bounds, against mistakes in strings.
            if "gt" in bound and not value > bound["gt"]:
                problems.append(f"{name} must be above {bound['gt']}, not {value}")
            elif "ge" in bound and not value >= bound["ge"]:
                problems.append(f"{name} must be {bound['ge']} or more, not {value}")
        if problems:
            raise ConfigError(problems)


DEFAULTS: Final = BrokerSettings()


def bounds(name: str) -> dict[str, Any]:
    """The default and the range of a setting, as keyword arguments for `option()`."""
    return {"default": getattr(DEFAULTS, name), **_BOUNDS[name]}
