"""How fast cqrs-brokers is, measured against the other ways to publish to the same servers: `python -m benchmarks`.

Not a test: nothing here fails because of a figure, only because messages were lost, or reported wrongly.
"""
