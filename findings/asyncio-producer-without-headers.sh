#!/bin/sh
# confluent-kafka's AIOProducer takes neither headers nor a time stamp, and one message with a time stamp fails its
# neighbours.
#
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.0, its own mock cluster), Python 3.11.
# Expected: produce() of the asyncio producer takes what produce() of the other one takes, or refuses it.
# Seen: headers= raises NotImplementedError in produce(). timestamp= is taken there; when the buffer is sent, the whole
# batch fails with NotImplementedError, the messages of other callers that have no time stamp included.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check confluent-kafka==2.16.1
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import logging

from confluent_kafka.aio import AIOProducer


class Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            print("logged:", type(record.exc_info[1]).__name__, record.exc_info[1])


async def main() -> None:
    logging.getLogger().handlers = [Notes()]
    settings = {"bootstrap.servers": "localhost:1", "test.mock.num.brokers": 1, "log_level": 0}
    producer = AIOProducer(settings, buffer_timeout=0.2)
    try:
        await producer.produce("topic", value=b"x", headers=[("name", b"value")])
    except NotImplementedError as error:
        print("headers:", str(error).partition(".")[0])
    plain = await producer.produce("topic", value=b"without")
    stamped = await producer.produce("topic", value=b"with", timestamp=1_700_000_000_000)
    await asyncio.wait([plain, stamped], timeout=4)
    for name, future in (("plain", plain), ("with a time stamp", stamped)):
        print(f"{name}:", repr(future.exception()) if future.done() else "pending")


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
headers: Headers are not supported in AIOProducer batch mode
logged: NotImplementedError Message timestamps are not currently supported in batch mode
plain: NotImplementedError('Message timestamps are not currently supported in batch mode')
with a time stamp: NotImplementedError('Message timestamps are not currently supported in batch mode')
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
