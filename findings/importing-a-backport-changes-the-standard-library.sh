#!/bin/sh
# Importing importlib_metadata changes what importlib.metadata of the standard library returns in the whole process.
#
# Versions: importlib-metadata 10.2.0, Python 3.11.
# Expected: a backport is a module of its own, and the one of the standard library stays as it is.
# Seen: after the import, importlib.metadata.distribution() returns an object of importlib_metadata, which is not an
# instance of importlib.metadata.Distribution: an isinstance check somewhere else in the process fails from then on.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check importlib-metadata==10.2.0
cat > "$folder/case.py" <<'PYTHON'
import importlib.metadata as standard

before = standard.distribution("pip")
print(type(before).__module__, isinstance(before, standard.Distribution))
import importlib_metadata  # noqa: E402, F401

after = standard.distribution("pip")
print(type(after).__module__, isinstance(after, standard.Distribution))
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
importlib.metadata True
importlib_metadata False
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
