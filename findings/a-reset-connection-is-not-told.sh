#!/bin/sh
# nats-py without reconnects does not call closed_cb when the connection is reset while messages wait in its buffer.
#
# Versions: nats-py 2.16.0, Python 3.11. The peer is a few lines that greet as a NATS server does, answer each PING, and
# reset the connection after some messages: a server is not easily told to reset at a chosen moment.
# Expected: with allow_reconnect=False, closed_cb is called once the connection is gone, however it ended.
# Seen: the client's task that reads closes the client, and writes what waits in the buffer to the dead connection first.
# That raises, the exception ends the task, nobody retrieves it, and neither closed_cb nor disconnected_cb is called.
# The client says is_closed all the same. With no message in the buffer closed_cb is called every time.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check nats-py==2.16.0
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import gc
import socket
import struct

import nats

INFO = b'INFO {"server_id":"x","version":"2.15.3","proto":1,"host":"127.0.0.1","port":4222,"max_payload":1048576}\r\n'


async def run(publishes: bool) -> tuple[bool, bool, bool]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        writer.write(INFO)
        while not (line := await reader.readline()).startswith(b"PING"):
            pass
        writer.write(b"PONG\r\n")
        await asyncio.sleep(0.1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() resets
        writer.transport.abort()

    called, unretrieved = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unretrieved.set())

    async def closed() -> None:
        called.set()

    async def error(error: Exception) -> None:
        pass

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = "nats://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    client = await nats.connect(address, allow_reconnect=False, closed_cb=closed, error_cb=error)
    try:
        while publishes and not client.is_closed:
            await client.publish("subject", b"body")
            await asyncio.sleep(0)
    except nats.errors.Error:
        pass
    try:
        await asyncio.wait_for(called.wait(), 1)
    except asyncio.TimeoutError:
        pass
    state = client.is_closed
    del client
    server.close()
    gc.collect()
    await asyncio.sleep(0.05)
    return called.is_set(), state, unretrieved.is_set()


quiet = [asyncio.run(run(publishes=False)) for _ in range(5)]
busy = [asyncio.run(run(publishes=True)) for _ in range(15)]
print("told, when nothing waits:", all(told for told, _, _ in quiet))
print("not told, when messages wait:", not any(told for told, _, _ in busy))
print("the client says closed, though:", all(state for _, state, _ in busy))
print("an exception of a task that nobody retrieved:", all(lost for _, _, lost in busy))
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
told, when nothing waits: True
not told, when messages wait: True
the client says closed, though: True
an exception of a task that nobody retrieved: True
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
