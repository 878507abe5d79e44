#!/bin/sh
# pika: what a blocking connection raises when the AMQP handshake takes longer than stack_timeout is no AMQPError.
#
# Versions: pika 1.4.4, Python 3.11.
# Expected: AMQPConnectionError or another AMQPError, as for a port on which nobody listens, a connection that the server
# ends, or a login that it refuses; "except AMQPError" is how programs catch whatever pika says of a broker.
# Seen: a server that accepts and says nothing ends in AMQPConnectorStackTimeout, whose base AMQPConnectorException is a
# plain Exception: neither AMQPError nor TimeoutError nor OSError. The module that defines it is not among those that
# pika's documentation shows. A loop that waits for a broker with "except AMQPError" ends at the first slow start.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pika==1.4.4
cat > "$folder/case.py" <<'PYTHON'
import logging
import socket

import pika

logging.disable(logging.CRITICAL)


def outcome(port: int) -> str:
    parameters = pika.ConnectionParameters("127.0.0.1", port, socket_timeout=1, stack_timeout=1)
    try:
        pika.BlockingConnection(parameters)
    except Exception as error:
        kinds = (pika.exceptions.AMQPError, TimeoutError, OSError)
        return f"{type(error).__name__} {[isinstance(error, kind) for kind in kinds]}"
    return "connected"


silent = socket.create_server(("127.0.0.1", 0))
closed = socket.create_server(("127.0.0.1", 0))
port = closed.getsockname()[1]
closed.close()
print("nobody listens:", outcome(port))
print("accepts and says nothing:", outcome(silent.getsockname()[1]))
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat "$folder/seen"
cat > "$folder/expected" <<'SEEN'
nobody listens: AMQPConnectionError [True, False, False]
accepts and says nothing: AMQPConnectorStackTimeout [False, False, False]
SEEN
diff "$folder/expected" "$folder/seen"
