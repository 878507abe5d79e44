#!/bin/sh
# SQLite's switch to WAL fails at once while another connection writes; the busy timeout does not hold for it.
#
# Versions: SQLite 3.50.4 (apsw 3.50.4.0), Python 3.11.
# Expected: with `PRAGMA busy_timeout = 1000` every statement waits up to a second for a lock that somebody else has.
# Seen: an INSERT waits for that second. `PRAGMA journal_mode = WAL` waits while another connection reads, but not while
# another connection writes: then it fails with "database is locked" at once. A program that sets the mode when it
# connects, as many do, cannot start while another program uses the file that has not been switched yet.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/case.py" <<'PYTHON'
import sys
import time

import apsw

file = sys.argv[1]
other, ours = apsw.Connection(file), apsw.Connection(file)
other.execute("CREATE TABLE sent (id INTEGER)")
ours.execute("PRAGMA busy_timeout = 1000")


def look(statement):
    began = time.monotonic()
    try:
        ours.execute(statement).fetchall()
        outcome = "done"
    except apsw.BusyError as error:
        outcome = str(error).removeprefix("BusyError: ")
    return f"{outcome}, {'after a second' if time.monotonic() - began > 0.9 else 'at once'}"


print("SQLite", apsw.sqlite_lib_version())
for what, begin in (("reads", "BEGIN; SELECT * FROM sqlite_schema"), ("writes", "BEGIN IMMEDIATE")):
    reading = other.execute(begin)
    print(f"another connection {what}: an INSERT:", look("INSERT INTO sent VALUES (1)"))
    print(f"another connection {what}: the switch:", look("PRAGMA journal_mode = WAL"))
    reading.close(force=True)
    other.execute("ROLLBACK")
print("alone: the switch:", look("PRAGMA journal_mode = WAL"))
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check apsw==3.50.4.0
"$folder/venv/bin/python" "$folder/case.py" "$folder/shop.db" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
SQLite 3.50.4
another connection reads: an INSERT: database is locked, after a second
another connection reads: the switch: database is locked, after a second
another connection writes: an INSERT: database is locked, after a second
another connection writes: the switch: database is locked, at once
alone: the switch: done, at once
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
