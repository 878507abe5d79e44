#!/bin/sh
# aiokafka returns a connection that the broker has closed, and says so only afterwards.
#
# Versions: aiokafka 0.14.0, Python 3.11. The peer is a few lines that answer the question for the versions and close the
# connection directly behind the answer, as a broker does that is being shut down: it is not easily told to at a moment.
# Expected: create_conn raises, or what it returns is connected.
# Seen: it returns a connection whose connected() is False. on_close has not been called then; it is called in a later
# turn of the event loop, once. A client that keeps the connection until on_close tells it to drop it, and that learns of
# the end before it has kept it, has a connection that never ends.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check aiokafka==0.14.0
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import struct

from aiokafka.conn import create_conn

VERSIONS = struct.pack(">hihhh", 0, 1, 18, 0, 0)  # no error, one request: ApiVersions, only in version 0


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    (size,) = struct.unpack(">i", await reader.readexactly(4))
    _, _, number = struct.unpack(">hhi", (await reader.readexactly(size))[:8])
    writer.write(struct.pack(">ii", 4 + len(VERSIONS), number) + VERSIONS)
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    returned, told, later = [], [], []
    for _ in range(10):
        ends: list[object] = []
        connection = await create_conn("127.0.0.1", port, on_close=lambda _, reason=None, ends=ends: ends.append(reason))
        returned.append(connection.connected())
        told.append(len(ends))
        await asyncio.sleep(0.1)
        later.append(len(ends))
    print("returned without an error, and not connected:", not any(returned))
    print("on_close had been called by then:", sum(told), "of 10 times")
    print("on_close was called later:", sum(later), "of 10 times")
    server.close()


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
returned without an error, and not connected: True
on_close had been called by then: 0 of 10 times
on_close was called later: 10 of 10 times
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
