#!/bin/sh
# A BufferedProtocol whose get_buffer() gives a bytearray loses data with TLS, and loses none without.
#
# Versions: Python 3.11, trustme 1.2.1.
# Expected: what the documentation of asyncio says of get_buffer(): it returns "an object implementing the buffer protocol".
# A bytearray is one, and over plain TCP it works.
# Seen: when several TLS records have arrived, asyncio reads the second one into a slice of the buffer. The slice of a
# bytearray is a copy, so its bytes never reach the protocol, which gets zeros in their place. No error is raised: a driver
# that reads the confirms of a broker in this way reads other ones. With memoryview(bytearray(n)) every byte arrives.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import ssl

import trustme

RECORDS = [bytes([number]) * 100 for number in range(1, 101)]
SENT = b"".join(RECORDS)


class Reader(asyncio.BufferedProtocol):
    def __init__(self, buffer):
        self.buffer = buffer
        self.received = b""
        self.ended = asyncio.Event()

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self.received += bytes(self.buffer[:nbytes])

    def connection_lost(self, error):
        self.ended.set()


async def serve(reader, writer):
    for record in RECORDS:
        writer.write(record)
    await writer.drain()
    writer.close()


async def main():
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    for tls in (False, True):
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=theirs if tls else None)
        port = server.sockets[0].getsockname()[1]
        for buffer in (bytearray(2**16), memoryview(bytearray(2**16))):
            more = {"ssl": ours, "server_hostname": "localhost"} if tls else {}
            protocol = Reader(buffer)
            await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port, **more)
            await protocol.ended.wait()
            right = protocol.received == SENT
            zeros = "zeros among them" if 0 in protocol.received else "no zeros"
            print("TLS" if tls else "TCP", type(buffer).__name__, "as sent" if right else "not as sent", zeros)
        server.close()


asyncio.run(main())
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check trustme==1.2.1
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
TCP bytearray as sent no zeros
TCP memoryview as sent no zeros
TLS bytearray not as sent zeros among them
TLS memoryview as sent no zeros
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
