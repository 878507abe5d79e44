"""`python -m cqrs_brokers_testkit SCHEME-OR-URL` runs the conformance suite."""

import sys

from cqrs_brokers_testkit.conformance._command import main

if __name__ == "__main__":
    sys.exit(main())
