"""Turns what an application passes into bytes for the wire: validation, encoding, message ids."""
