#!/bin/sh
# asyncio's abort() raises an AttributeError when the transport was closed while bytes waited and has written them since.
#
# Versions: Python 3.11, uvloop 0.22.1.
# Expected: abort() of a transport whose connection has ended does nothing, as it does after every other close. A client
# that drops its connection once more when it learns of the end relies on it.
# Seen: close() with an empty buffer, then abort(): nothing. close() with bytes in the buffer, which are then written:
# abort() fails with "'NoneType' object has no attribute 'call_soon'", because the transport has forgotten its loop. The
# error hid a lost connection from a driver, which stayed unconnected. uvloop does nothing in both cases.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import socket
import sys


class Client(asyncio.Protocol):
    def __init__(self):
        self.ended = asyncio.Event()

    def connection_lost(self, error):
        self.ended.set()


async def main():
    for size in (0, 4_000_000):
        ours, theirs = socket.socketpair()
        client = Client()
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: client, sock=ours)
        transport.write(bytes(size))
        transport.close()
        received = 0
        while received < size:
            received += len(await asyncio.to_thread(theirs.recv, 2**20))
        await client.ended.wait()
        try:
            transport.abort()
            seen = "nothing"
        except Exception as error:
            seen = repr(error)
        print(sys.argv[1], "with bytes" if size else "empty", "->", seen)
        theirs.close()


run = asyncio.run
if sys.argv[1] == "uvloop":
    import uvloop

    run = uvloop.run
run(main())
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check uvloop==0.22.1
for loop in asyncio uvloop; do
    "$folder/venv/bin/python" "$folder/case.py" "$loop" >> "$folder/seen"
done
cat > "$folder/expected" <<'SEEN'
asyncio empty -> nothing
asyncio with bytes -> AttributeError("'NoneType' object has no attribute 'call_soon'")
uvloop empty -> nothing
uvloop with bytes -> nothing
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
