#!/bin/sh
# librdkafka's "end of partition" is not told while records keep coming slowly, though the consumer reads each at once.
#
# Versions: Apache Kafka 4.4.0, confluent-kafka 2.16.1 (librdkafka 2.16.0), Python 3.11.
# Expected: enable.partition.eof says RD_KAFKA_RESP_ERR__PARTITION_EOF "whenever the consumer reaches the end of a
# partition". With a record each 100 ms, which is read before the next one is written, that is ten times a second.
# Seen: not once in 10 s. The event is made from an empty answer to a fetch, and the broker holds a fetch for
# fetch.wait.max.ms (500 ms) or until a record is there. So a reader that waits for the end of a partition runs after it
# until the writers pause for half a second. The end has to be asked for: get_watermark_offsets().
set -eu
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check confluent-kafka==2.16.1
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
import sys
import threading
import time

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

servers = {"bootstrap.servers": sys.argv[1], "log_level": 0}
admin = AdminClient(servers)
admin.create_topics([NewTopic("growing", 1, 1)], operation_timeout=60)["growing"].result(80)
stop = threading.Event()


def write() -> None:
    producer = Producer({**servers, "linger.ms": 0})
    while not stop.wait(0.1):
        producer.produce("growing", b"x")
        producer.poll(0)
    producer.flush(20)


writer = threading.Thread(target=write)
writer.start()
consumer = Consumer({**servers, "group.id": "x", "enable.auto.commit": False, "enable.partition.eof": True})
consumer.assign([TopicPartition("growing", 0, 0)])
began = time.monotonic()
records = ends = caught_up = 0
while time.monotonic() - began < 12:
    message = consumer.poll(0.1)
    if message is None or time.monotonic() - began < 2:
        continue
    if message.error() is None:
        records += 1
        low, high = consumer.get_watermark_offsets(TopicPartition("growing", 0), cached=True)
        caught_up += message.offset() + 1 == high
    elif message.error().code() == KafkaError._PARTITION_EOF:
        ends += 1
stop.set()
writer.join()
print("records read in 10 s, more than 50:", records > 50)
print("of these the last one by the high watermark that came with it, more than 25 times:", caught_up > 25)
print("ends told:", ends)
began = time.monotonic()
while time.monotonic() - began < 10 and not ends:
    message = consumer.poll(0.1)
    ends += message is not None and message.error() is not None and message.error().code() == KafkaError._PARTITION_EOF
print("ends told after the writer has stopped:", ends)
consumer.close()
PYTHON
timeout 240 "$folder/venv/bin/python" "$folder/case.py" "127.0.0.1:$port" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
records read in 10 s, more than 50: True
of these the last one by the high watermark that came with it, more than 25 times: True
ends told: 0
ends told after the writer has stopped: 1
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
