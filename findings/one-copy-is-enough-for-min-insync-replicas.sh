#!/bin/sh
# A Kafka topic with one replica takes records with acks=all although its min.insync.replicas is 2.
#
# Versions: Apache Kafka 4.4.0 (also seen with 4.1.0 and 3.9.1), confluent-kafka 2.16.1, Python 3.11.
# Expected: NOT_ENOUGH_REPLICAS, as when one of two replicas is away; min.insync.replicas "specifies the minimum number of
# replicas that must acknowledge a write".
# Seen: the record is acknowledged. The broker takes the smaller of min.insync.replicas and the number of replicas, so a
# cluster-wide min.insync.replicas=2 says nothing about a topic that was created with one replica.
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

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

servers = {"bootstrap.servers": sys.argv[1], "log_level": 0}
admin = AdminClient(servers)
topic = NewTopic("single", 1, 1, config={"min.insync.replicas": "2"})
admin.create_topics([topic], operation_timeout=60)["single"].result(80)
settings = next(iter(admin.describe_configs([ConfigResource("topic", "single")]).values())).result(10)
print("min.insync.replicas:", settings["min.insync.replicas"].value)
print("replicas:", len(admin.list_topics("single", timeout=10).topics["single"].partitions[0].replicas))
producer = Producer({**servers, "acks": "all", "message.timeout.ms": 10_000})
producer.produce("single", b"x", on_delivery=lambda error, message: print("error:", error, "offset:", message.offset()))
producer.flush(20)
PYTHON
timeout 240 "$folder/venv/bin/python" "$folder/case.py" "127.0.0.1:$port" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
min.insync.replicas: 2
replicas: 1
error: None offset: 0
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
