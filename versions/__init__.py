"""With which servers, Pythons and dependencies it works: `nox -s versions` runs the tests with each and writes a page.

Not the product of all: each server is tried once, each Python once, the oldest dependencies once.
"""
