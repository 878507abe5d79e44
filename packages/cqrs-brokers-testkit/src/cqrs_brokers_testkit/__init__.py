"""Tools for tests: real servers, readers, a fault proxy, and the conformance suite. Each module documents its part."""

__all__: list[str] = []
