"""The relay's parts: the database (`store`, `statements`), leases, keys, outcomes."""
