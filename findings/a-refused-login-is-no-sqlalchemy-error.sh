#!/bin/sh
# With SQLAlchemy 2.0 and asyncpg, a refused login is not an error of SQLAlchemy; `except DBAPIError` does not catch it.
#
# Versions: SQLAlchemy 2.0.58 and 2.1.9, asyncpg 0.32.0, psycopg 3.2.12, Python 3.11.
# Expected: SQLAlchemy wraps what its drivers raise while they connect, and tells OperationalError from other errors, so
# that a program which waits for its database looks for one class.
# Seen: with psycopg the error is `sqlalchemy.exc.OperationalError`. With asyncpg 2.0 lets `asyncpg.exceptions.
# InvalidPasswordError` through, and 2.1 raises a plain `DBAPIError`. A worker that tries again at OperationalError ends
# at a password that is changed. The server here is a socket that refuses each login as PostgreSQL does (28P01).
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import struct

from sqlalchemy import exc
from sqlalchemy.ext.asyncio import create_async_engine

REFUSAL = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0\0"


async def refuse(reader, writer):
    while True:
        (size,) = struct.unpack(">i", await reader.readexactly(4))
        (code,) = struct.unpack_from(">i", await reader.readexactly(size - 4))
        if code not in (80877103, 80877104):  # neither SSLRequest nor GSSENCRequest: the startup message
            break
        writer.write(b"N")
    writer.write(b"E" + struct.pack(">i", len(REFUSAL) + 4) + REFUSAL)
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for driver in ("asyncpg", "psycopg"):
        engine = create_async_engine(f"postgresql+{driver}://app:secret@127.0.0.1:{port}/shop")
        try:
            async with engine.connect():
                seen = "connected"
        except Exception as error:
            kinds = [kind.__name__ for kind in (exc.DBAPIError, exc.OperationalError) if isinstance(error, kind)]
            seen = f"{type(error).__module__}.{type(error).__name__}, is {' and '.join(kinds) or 'neither'}"
        await engine.dispose()
        print(driver, "->", seen)


asyncio.run(main())
PYTHON
for version in 2.0.58 2.1.9; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install -q --disable-pip-version-check \
        "sqlalchemy[asyncio]==$version" asyncpg==0.32.0 "psycopg[binary]==3.2.12"
    "$folder/$version/bin/python" "$folder/case.py" | sed "s/^/$version /" >> "$folder/seen"
done
cat > "$folder/expected" <<'SEEN'
2.0.58 asyncpg -> asyncpg.exceptions.InvalidPasswordError, is neither
2.0.58 psycopg -> sqlalchemy.exc.OperationalError, is DBAPIError and OperationalError
2.1.9 asyncpg -> sqlalchemy.exc.DBAPIError, is DBAPIError
2.1.9 psycopg -> sqlalchemy.exc.OperationalError, is DBAPIError and OperationalError
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
