"""For tests: real servers, readers, a fault proxy, and the conformance suite. See its modules."""

__all__: list[str] = []
