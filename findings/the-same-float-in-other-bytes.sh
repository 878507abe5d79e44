#!/bin/sh
# pydantic 2.13 and later write large floats in JSON with other bytes than 2.12. Small ones never match json.dumps.
#
# Versions: pydantic 2.12.5 and 2.14.4, Python 3.11.
# Expected: one value of one model has one JSON text, whatever minor version of pydantic writes it, so that a checksum, a
# signature or a deduplication id of a message's body still matches after an upgrade.
# Seen: exponents from 16 on have a plus sign since 2.13 (`1e+16`, before `1e16`). Negative exponents have one digit in
# both (`1e-7`), where json.dumps writes two (`1e-07`). Integers, and floats without an exponent, are the same in all.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/case.py" <<'PYTHON'
import hashlib
import json

import pydantic


class Measured(pydantic.BaseModel):
    value: float


for value in (1e15, 1e16, 1.5e300, 1e-7):
    text = Measured(value=value).model_dump_json()
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    same = text == json.dumps({"value": value}, separators=(",", ":"))
    print(pydantic.VERSION, text, digest, "as json.dumps" if same else "not as json.dumps")
PYTHON
for version in 2.12.5 2.14.4; do
    python3 -m venv "$folder/venv-$version"
    "$folder/venv-$version/bin/pip" install -q --disable-pip-version-check "pydantic==$version"
    "$folder/venv-$version/bin/python" "$folder/case.py" >> "$folder/seen"
done
cat > "$folder/expected" <<'SEEN'
2.12.5 {"value":1000000000000000.0} fdf8fc7a as json.dumps
2.12.5 {"value":1e16} 4baacee3 not as json.dumps
2.12.5 {"value":1.5e300} 765fe596 not as json.dumps
2.12.5 {"value":1e-7} 91075003 not as json.dumps
2.14.4 {"value":1000000000000000.0} fdf8fc7a as json.dumps
2.14.4 {"value":1e+16} f6b1d809 as json.dumps
2.14.4 {"value":1.5e+300} d68aa83e as json.dumps
2.14.4 {"value":1e-7} 91075003 not as json.dumps
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
