#!/bin/sh
# confluent-kafka's AIOProducer sends nothing while messages keep coming slowly: its buffer_timeout is an idle timer.
#
# Versions: confluent-kafka 2.16.1 (librdkafka 2.16.0, its own mock cluster), Python 3.11.
# Expected: buffer_timeout (1 s by default) bounds how long a message waits in the buffer.
# Seen: the timer starts again with every message. 50 messages, one each 0.1 s, are all still in the buffer after 5 s;
# they are sent when the trickle ends, or when there are batch_size (1000) of them. A lone message takes 1 to 2 s.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check confluent-kafka==2.16.1
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import time

from confluent_kafka.aio import AIOProducer


async def main() -> None:
    settings = {"bootstrap.servers": "localhost:1", "test.mock.num.brokers": 1, "linger.ms": 0, "log_level": 0}
    producer = AIOProducer(settings)
    began = time.perf_counter()
    await (await producer.produce("topic", value=b"lone"))
    took = time.perf_counter() - began
    print("a lone message takes more than 0.5 s:", took > 0.5)
    began, waiting = time.perf_counter(), []
    while time.perf_counter() - began < 5:
        waiting.append(await producer.produce("topic", value=b"one of many"))
        await asyncio.sleep(0.1)
    print("sent within 5 s of a trickle:", sum(future.done() for future in waiting))
    await asyncio.gather(*waiting)
    print("all sent after it:", all(future.done() for future in waiting))
    await producer.close()


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
a lone message takes more than 0.5 s: True
sent within 5 s of a trickle: 0
all sent after it: True
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
