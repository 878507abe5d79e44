#!/bin/sh
# confluent-kafka gives a message that Kafka refused an offset, and refuses the good neighbours of one bad record too.
#
# Versions: Apache Kafka 4.4.0, confluent-kafka 2.16.1 (librdkafka 2.16.0), kafka-python 3.0.12, Python 3.11.
# Expected: in a compacted topic the record without a key fails, and the others of its batch are delivered or told from
# it: the answer lists the records that are at fault (since Produce version 8).
# Seen: the broker refuses the whole batch. confluent-kafka fails all three with INVALID_RECORD, does not say which one it
# was, and message.offset() of the second and third is 0 and 1, as if they were in the log, where nothing is.
# kafka-python tells the culprit from its neighbours by the class of the error.
set -eu
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check confluent-kafka==2.16.1 kafka-python==3.0.12
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
import time

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from kafka import KafkaProducer

servers = {"bootstrap.servers": sys.argv[1], "log_level": 0}
admin = AdminClient(servers)
topic = NewTopic("compacted", 1, 1, config={"cleanup.policy": "compact"})
admin.create_topics([topic], operation_timeout=60)["compacted"].result(80)
time.sleep(2)
producer = Producer({**servers, "linger.ms": 500})
for key in (b"first", None, b"third"):
    producer.produce("compacted", b"x", key=key, on_delivery=lambda e, m: print(m.key(), e.name(), m.offset()))
producer.flush(30)
consumer = Consumer({**servers, "group.id": "reader"})
print("in the log:", consumer.get_watermark_offsets(TopicPartition("compacted", 0), timeout=10))
consumer.close()
python = KafkaProducer(bootstrap_servers=sys.argv[1], linger_ms=500, key_serializer=None)
futures = [(key, python.send("compacted", b"x", key=key)) for key in (b"first", None, b"third")]
for key, future in futures:
    try:
        future.get(30)
    except Exception as error:
        print(key, type(error).__name__)
python.close()
PYTHON
timeout 240 "$folder/venv/bin/python" "$folder/case.py" "127.0.0.1:$port" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
b'first' INVALID_RECORD None
None INVALID_RECORD 0
b'third' INVALID_RECORD 1
in the log: (0, 0)
b'first' KafkaError
None InvalidRecordError
b'third' KafkaError
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
