#!/bin/sh
# The first class that derives from pydantic.BaseModel reads the entry points of every installed distribution.
#
# Versions: pydantic 2.14.4, Python 3.11.
# Expected: defining a class touches no files. `import pydantic` does not scan the environment, so nothing else should.
# Seen: at the first class definition pydantic looks for plugins in the entry points of all distributions (a file for
# each that has some), so the cost of the first model grows with what else is installed. The second class reads nothing.
# PYDANTIC_DISABLE_PLUGINS=1 does not load the plugins, and the class definition opens no such file then.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pydantic==2.14.4
cat > "$folder/case.py" <<'PYTHON'
import os
import subprocess
import sys

CASE = """
import sys
import pydantic

read = []
sys.addaudithook(lambda event, args: event == "open" and read.append(str(args[0])))


def entry_points():
    return sum(name.endswith("entry_points.txt") for name in read) > 0


class First(pydantic.BaseModel):
    number: int


print("first model reads entry points:", entry_points())
read.clear()


class Second(pydantic.BaseModel):
    number: int


print("second model reads entry points:", entry_points())
"""
for setting in ({}, {"PYDANTIC_DISABLE_PLUGINS": "1"}):
    print(setting)
    subprocess.run([sys.executable, "-c", CASE], env={**os.environ, **setting}, check=True, stdout=None)
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
{}
first model reads entry points: True
second model reads entry points: False
{'PYDANTIC_DISABLE_PLUGINS': '1'}
first model reads entry points: False
second model reads entry points: False
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
