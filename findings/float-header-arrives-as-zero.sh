#!/bin/sh
# A float in the headers of an AMQP message is written in single precision by pamqp (under aio-pika and aiormq), and pika
# reads it as the integer 0.
#
# Versions: pamqp 4.0.1, pika 1.4.4, Python 3.11.
# Expected: 0.1 arrives as 0.1, or at least as a float. The type "d" (double) exists in the same table of types.
# Seen: pamqp writes the type "f" (single precision) and itself reads 0.10000000149011612 back. pika decodes "f" as an
# integer, so every price below 1 is 0, without an error on either side.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pamqp==4.0.1 pika==1.4.4
cat > "$folder/case.py" <<'PYTHON'
from pamqp import decode, encode
from pika import data

raw = encode.field_table({"price": 0.1, "rate": 2.75})
print(raw[4:].hex(" "))
print(decode.field_table(raw)[1])
print({name: int(value) for name, value in data.decode_table(raw, 0)[0].items()})
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
05 70 72 69 63 65 66 3d cc cc cd 04 72 61 74 65 66 40 30 00 00
{'price': 0.10000000149011612, 'rate': 2.75}
{'price': 0, 'rate': 2}
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
