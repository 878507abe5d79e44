#!/bin/sh
# pika reads a header of type double (AMQP 0-9-1 field type 'd') as an integer: 0.1 arrives as 0, 2.75 as 2.
#
# Versions: pika 1.4.4, pamqp 4.0.1, Python 3.11. No server is needed: the bytes are those of a header table with one
# field. pamqp, the codec of aio-pika, reads them as the double that they are. pika's source shows why: for the types 'd'
# and 'f' it calls its `long(...)`, a subclass of int.
#
# Seen:
#     pamqp reads {'ratio': 0.1}
#     pika reads {'ratio': 0L}
#
# Exit code: 0 when pika behaves as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pika==1.4.4 pamqp==4.0.1
"$folder/venv/bin/python" - <<'PYTHON'
import struct
import sys

import pamqp.decode
import pika.data

field = b"\x05ratio" + b"d" + struct.pack(">d", 0.1)
table = struct.pack(">I", len(field)) + field
_, right = pamqp.decode.field_table(table)
wrong, _ = pika.data.decode_table(table, 0)
print("pamqp reads", right)
print("pika reads", wrong)
sys.exit(not (right == {"ratio": 0.1} and wrong == {"ratio": 0} and isinstance(wrong["ratio"], int)))
PYTHON
