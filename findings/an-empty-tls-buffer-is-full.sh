#!/bin/sh
# asyncio's TLS transport: with a high-water mark of 0 it pauses its protocol while its buffer is empty, and it reports
# an empty buffer while megabytes wait in the transport below it.
#
# Versions: Python 3.11.7 (asyncio.sslproto), trustme 1.2.1 for the certificate.
# Expected: set_write_buffer_limits(high=0) pauses the protocol "whenever the buffer becomes non-empty", as the
# documentation says and as the plain transport does; get_write_buffer_size() counts what is not with the system yet.
# Seen: over TLS the protocol is paused at once, with nothing written, so whoever awaits a drain waits with an empty
# buffer. And after a write of 16 MB to a peer that reads nothing the TLS transport reports 0 bytes, the one below
# millions: a publisher that takes the first for "the system has it" is wrong.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check trustme==1.2.1
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import ssl

import trustme


class Paused(asyncio.StreamReaderProtocol):
    paused = False

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused = True


async def main() -> None:
    authority = trustme.CA()
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(serving)
    authority.configure_trust(trusting)
    over = asyncio.Event()

    async def reads_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await over.wait()
        writer.transport.abort()

    loop = asyncio.get_running_loop()
    for name, context in (("plain", None), ("TLS", serving)):
        server = await asyncio.start_server(reads_nothing, "127.0.0.1", 0, ssl=context)
        reader = asyncio.StreamReader()
        protocol = Paused(reader)
        below, _ = await loop.create_connection(lambda p=protocol: p, "127.0.0.1", server.sockets[0].getsockname()[1])
        writer = asyncio.StreamWriter(below, protocol, reader, loop)
        if context is not None:
            await writer.start_tls(trusting, server_hostname="localhost")
        transport = writer.transport
        transport.set_write_buffer_limits(high=0)
        print(f"{name}: paused with {transport.get_write_buffer_size()} bytes in the buffer:", protocol.paused)
        transport.write(b"x" * 16_000_000)
        waits = transport.get_write_buffer_size() > 1_000_000, below.get_write_buffer_size() > 1_000_000
        print(f"{name}: more than 1 MB waits, by the transport and by the one below:", *waits)
        transport.abort()
        over.set()
        server.close()
        await asyncio.sleep(0.05)
        over.clear()


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
plain: paused with 0 bytes in the buffer: False
plain: more than 1 MB waits, by the transport and by the one below: True True
TLS: paused with 0 bytes in the buffer: True
TLS: more than 1 MB waits, by the transport and by the one below: False True
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
