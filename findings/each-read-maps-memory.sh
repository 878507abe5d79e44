#!/bin/sh
# asyncio maps fresh memory for every read of a socket, also for an answer of 60 bytes. Protocols of aiokafka, aiormq and
# nats-py, and asyncio's own streams, pay for it with each answer.
#
# Versions: Python 3.11, uvloop 0.22.1, glibc 2.36 (Debian 12), Linux.
# Expected: after the first reads, a process that reads short answers one after the other needs no new memory.
# Seen: the selector event loop calls `recv(262144)`. The result is an object of 256 KiB that is then cut to the size of the
# answer. That is above the limit from which glibc's malloc asks the system for each object alone, so every read is an mmap,
# an mremap and a munmap, and two page faults. malloc does not learn from it (its limit grows when such an object is freed
# in its full size, and here it is freed after it was cut). A protocol that is a `BufferedProtocol` too reads into memory
# of its own, and has no page fault. uvloop has none with either.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import resource
import socket
import sys

READS = 2000
ANSWER = b"an answer" * 6


class Streams(asyncio.StreamReaderProtocol):
    pass


class BufferedStreams(asyncio.StreamReaderProtocol, asyncio.BufferedProtocol):
    buffer = memoryview(bytearray(2**16))

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, nbytes):
        self.data_received(bytes(self.buffer[:nbytes]))


async def main(kind):
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    reader = asyncio.StreamReader()
    protocol = kind(reader)
    await asyncio.get_running_loop().create_connection(lambda: protocol, sock=ours)
    for turn in range(READS + 100):
        if turn == 100:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        theirs.send(ANSWER)
        await reader.readexactly(len(ANSWER))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    print(sys.argv[1], kind.__name__, round(faults / READS), "page faults for each read")


run = asyncio.run
if sys.argv[1] == "uvloop":
    import uvloop

    run = uvloop.run
run(main(Streams))
run(main(BufferedStreams))
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check uvloop==0.22.1
for loop in asyncio uvloop; do
    "$folder/venv/bin/python" "$folder/case.py" "$loop" >> "$folder/seen"
done
cat > "$folder/expected" <<'SEEN'
asyncio Streams 2 page faults for each read
asyncio BufferedStreams 0 page faults for each read
uvloop Streams 0 page faults for each read
uvloop BufferedStreams 0 page faults for each read
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
