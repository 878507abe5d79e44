"""The soak: many publishers, a seeded schedule of faults, and a count of what was promised and what the broker holds.

    python -m soak amqp          python -m soak kafka --seed 7 --short          nox -s soak

The parts: `schedule` (which fault, when), `ledger` (what was promised), `publishers`, `run` (one soak from start to
end), `verdict` (the ledger against the broker's log), `report`; `rabbitmq` and `kafka` are what differs: servers,
faults, reader. It starts private servers on loopback; it measures truth and recovery, not speed.
"""
