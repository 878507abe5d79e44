#!/bin/sh
# Apache Qpid Broker-J compares the type of an exchange in a passive declaration, and closes the connection over it.
#
# Versions: Apache Qpid Broker-J 10.1.0, pika 1.4.4, Python 3.11.
# Expected: a passive declaration asks whether an exchange is there. AMQP 0-9-1 says of exchange.declare that all other
# fields except the name and no-wait are ignored when passive is set, and RabbitMQ does so: clients send their default
# type, which is "direct".
# Seen: with a topic exchange that is there, a passive declaration with the type "topic" succeeds. One with the type
# "direct" is answered with a close of the connection, code 530, and not of the channel.
set -eu
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pika==1.4.4
# The stores for Berkeley DB need a jar that Maven Central does not have.
cat > "$folder/pom.xml" <<'POM'
<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>findings</groupId><artifactId>qpid</artifactId><version>1</version><packaging>pom</packaging><dependencies>
<dependency><groupId>org.apache.qpid</groupId><artifactId>qpid-broker</artifactId><version>10.1.0</version><exclusions>
<exclusion><groupId>com.sleepycat</groupId><artifactId>je</artifactId></exclusion>
<exclusion><groupId>org.apache.qpid</groupId><artifactId>qpid-bdbstore</artifactId></exclusion>
<exclusion><groupId>org.apache.qpid</groupId><artifactId>qpid-broker-plugins-berkeleydb-store</artifactId></exclusion>
<exclusion><groupId>org.apache.qpid</groupId>
<artifactId>qpid-broker-plugins-amqp-1-0-protocol-bdb-link-store</artifactId></exclusion>
</exclusions></dependency></dependencies></project>
POM
mvn -B -q -f "$folder/pom.xml" dependency:copy-dependencies -DoutputDirectory="$folder/libs" > "$folder/maven.log" 2>&1
port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
cat > "$folder/config.json" <<JSON
{"name": "broker", "modelVersion": "8.0",
 "authenticationproviders": [{"name": "plain", "type": "Plain", "secureOnlyMechanisms": [],
   "users": [{"name": "guest", "password": "guest", "type": "managed"}]}],
 "ports": [{"name": "amqp", "port": "$port", "bindingAddress": "127.0.0.1", "authenticationProvider": "plain",
   "protocols": ["AMQP_0_9_1"], "virtualhostaliases": [{"name": "defaultAlias", "type": "defaultAlias"}]}],
 "virtualhostnodes": [{"name": "default", "type": "Memory", "defaultVirtualHostNode": "true",
   "virtualHostInitialConfiguration": "{\"type\": \"Memory\"}"}]}
JSON
export CLASSPATH="$folder/libs/*"
java -Xmx256m -Dqpid.work_dir="$folder/work" org.apache.qpid.server.Main --store-type Memory \
    --initial-config-path "$folder/config.json" > "$folder/qpid.log" 2>&1 &
server=$!
cat > "$folder/case.py" <<'PYTHON'
import logging
import socket
import sys
import time

import pika

logging.disable(logging.CRITICAL)
port = int(sys.argv[1])
for _ in range(600):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        break
    except OSError:
        time.sleep(0.2)


def declare(kind: str, *, passive: bool) -> str:
    connection = pika.BlockingConnection(pika.URLParameters(f"amqp://guest:guest@127.0.0.1:{port}/%2F"))
    try:
        connection.channel().exchange_declare("orders", kind, passive=passive)
    except pika.exceptions.AMQPError as error:
        return f"{type(error).__name__} {error.reply_code}"
    connection.close()
    return "declared"


print("topic:", declare("topic", passive=False))
print("passive, topic:", declare("topic", passive=True))
print("passive, direct:", declare("direct", passive=True))
PYTHON
timeout 240 "$folder/venv/bin/python" "$folder/case.py" "$port" > "$folder/seen"
cat "$folder/seen"
cat > "$folder/expected" <<'SEEN'
topic: declared
passive, topic: declared
passive, direct: ConnectionClosedByBroker 530
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
