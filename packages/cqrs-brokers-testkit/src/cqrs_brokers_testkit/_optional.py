"""Import the clients that this distribution needs only for some of its parts."""

import importlib
from typing import Any


class MissingExtra(ImportError):  # noqa: N818 - names what is missing
    """A part of the test kit needs a package that is not installed. The text says what to install."""


def require(module: str, *, extra: str) -> Any:
    """Return a module that belongs to the extra `extra` of cqrs-brokers-testkit.

    Raises:
        MissingExtra: The module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        command = f"pip install 'cqrs-brokers-testkit[{extra}]'"
        raise MissingExtra(f"this part of the test kit needs {module}, which is not installed: {command}") from error
