#!/bin/sh
# nats-py reads nothing more after the answer to a flush() whose caller has given up, and says that it is connected.
#
# Versions: nats-py 2.16.0, Python 3.11. The peer is a few lines that greet as a NATS server does, answer the second PING
# late, and then send a message: a server is not easily told to answer late.
# Expected: the late PONG answers nobody, and the message reaches the subscription.
# Seen: the task that reads sets the result of the cancelled future, which raises, and the task ends. Nobody retrieves
# the exception. The message is not read, and neither error_cb nor closed_cb is called. The client says is_connected.
# With a flush() that waits for its PONG the message comes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check nats-py==2.16.0
cat > "$folder/case.py" <<'PYTHON'
import asyncio

import nats

INFO = b'INFO {"server_id":"x","version":"2.15.3","proto":1,"host":"127.0.0.1","port":4222,"max_payload":1048576}\r\n'


async def run(patience: float) -> tuple[bool, bool, bool]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(INFO)
        pings = 0
        while line := await reader.readline():
            if line.startswith(b"PING"):
                pings += 1
                if pings == 1:
                    writer.write(b"PONG\r\n")
                else:
                    await asyncio.sleep(0.3)
                    writer.write(b"PONG\r\n")
                    await asyncio.sleep(0.1)
                    writer.write(b"MSG subject 1 4\r\nbody\r\n")

    read, told = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)

    async def received(message: object) -> None:
        read.set()

    async def closed() -> None:
        told.set()

    async def failed(error: Exception) -> None:
        told.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = "nats://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    client = await nats.connect(address, allow_reconnect=False, closed_cb=closed, error_cb=failed)
    await client.subscribe("subject", cb=received)
    try:
        await asyncio.wait_for(client.flush(timeout=60), patience)
    except asyncio.TimeoutError:
        pass
    try:
        await asyncio.wait_for(read.wait(), 1.5)
    except asyncio.TimeoutError:
        pass
    found = read.is_set(), told.is_set(), client.is_connected
    server.close()
    return found


patient = [asyncio.run(run(patience=5)) for _ in range(3)]
hasty = [asyncio.run(run(patience=0.1)) for _ in range(3)]
print("the message is read, when flush() waited:", all(read for read, _, _ in patient))
print("it is not read, when its caller gave up:", not any(read for read, _, _ in hasty))
print("neither callback is called:", not any(told for _, told, _ in hasty))
print("the client says connected, though:", all(connected for _, _, connected in hasty))
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen" 2> "$folder/log"
cat > "$folder/expected" <<'SEEN'
the message is read, when flush() waited: True
it is not read, when its caller gave up: True
neither callback is called: True
the client says connected, though: True
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
