"""Finds the plugin that owns a URL scheme, loads it, and opens brokers with it."""
