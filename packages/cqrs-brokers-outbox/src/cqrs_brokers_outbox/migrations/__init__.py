"""Migrations for alembic: add `cqrs_brokers_outbox:migrations` to its `version_locations`."""
