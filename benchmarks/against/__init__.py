"""How fast a version of this workspace is beside another one: `nox -s bench -- --against REF`.

Both versions are built into wheels and installed in environments of their own. `workload` runs in these environments
and uses public names only, so the harness here can be newer than what it measures.
"""
