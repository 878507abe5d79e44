#!/bin/sh
# A Kafka producer does not notice that its topic was deleted and made anew; it goes on at offset 0 without a word.
#
# Versions: Apache Kafka 4.4.0, aiokafka 0.14.0, confluent-kafka 2.16.1, kafka-python 3.0.12, Python 3.11.
# Expected: an idempotent producer has a sequence per partition, and topics have had ids since Kafka 2.8: the first record
# for another topic of the same name fails, or the client says that it is another topic.
# Seen: all three clients have an acknowledgement at once, with offset 0 after offset 2. What was acknowledged before is
# gone, and nothing on the producer's side says so.
set -eu
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check aiokafka==0.14.0 confluent-kafka==2.16.1 kafka-python==3.0.12
cat > "$folder/pom.xml" <<'POM'
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>findings</groupId><artifactId>kafka</artifactId><version>1</version><packaging>pom</packaging><dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>4.4.0</version></dependency>
</dependencies></project>
POM
mvn -B -q -f "$folder/pom.xml" dependency:copy-dependencies -DoutputDirectory="$folder/libs" > "$folder/maven.log" 2>&1
ports=$(python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*[one.getsockname()[1] for one in held])')
port=${ports% *} controller=${ports#* }
cat > "$folder/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$controller
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
offsets.topic.replication.factor=1
log.dirs=$folder/data

PROPERTIES
export CLASSPATH="$folder/libs/*"
java kafka.tools.StorageTool format -t MkU3OEVBNTcwNTJENDM2Qg -c "$folder/server.properties" > "$folder/format.log" 2>&1
java -Xmx256m -XX:+UseSerialGC kafka.Kafka "$folder/server.properties" > "$folder/kafka.log" 2>&1 &
server=$!
cat > "$folder/case.py" <<'PYTHON'
import asyncio
import sys

from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaProducer

servers = sys.argv[1]
admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
NAMES = ["aiokafka", "confluent-kafka", "kafka-python"]


def create() -> None:
    for future in admin.create_topics([NewTopic(name, 1, 1) for name in NAMES], operation_timeout=60).values():
        future.result(80)


async def main() -> None:
    create()
    await asyncio.sleep(2)
    aio = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=True)
    await aio.start()
    confluent = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 0})
    python = KafkaProducer(bootstrap_servers=servers, enable_idempotence=True)
    offsets: dict[str, list[object]] = {name: [] for name in NAMES}

    async def send() -> None:
        offsets["aiokafka"].append((await aio.send_and_wait("aiokafka", b"x")).offset)
        confluent.produce(
            "confluent-kafka", b"x", on_delivery=lambda e, m: offsets["confluent-kafka"].append(e or m.offset())
        )
        confluent.flush(30)
        offsets["kafka-python"].append(python.send("kafka-python", b"x").get(30).offset)

    for _ in range(3):
        await send()
    for future in admin.delete_topics(NAMES, operation_timeout=60).values():
        future.result(80)
    await asyncio.sleep(2)
    create()
    await asyncio.sleep(2)
    await send()
    for name in NAMES:
        print(name, offsets[name])
    await aio.stop()
    python.close()


asyncio.run(main())
PYTHON
timeout 240 "$folder/venv/bin/python" "$folder/case.py" "127.0.0.1:$port" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
aiokafka [0, 1, 2, 0]
confluent-kafka [0, 1, 2, 0]
kafka-python [0, 1, 2, 0]
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
