"""`python -m cqrs_brokers_outbox relay|status|parked|release|discard|partitions`."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
