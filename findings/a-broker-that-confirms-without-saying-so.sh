#!/bin/sh
# Apache Qpid Broker-J confirms publishes but names no capabilities, so aio-pika opens no channel (KeyError) and pika
# refuses to ask for confirms.
#
# Versions: Apache Qpid Broker-J 10.1.0, aio-pika 10.2.1 (aiormq 7.2.4), pika 1.4.4, Python 3.11.
# Expected: the table "capabilities" in the server's properties is an extension of RabbitMQ's; a broker without it can
# still be published to, and where the client insists on it, it says so.
# Seen: Qpid has "qpid.confirmed_publish_supported" among its server properties and no "capabilities". aio-pika ends with
# KeyError('capabilities') in channel(), with publisher_confirms=False as well; nothing names the broker. pika publishes
# without confirms and refuses confirm_delivery().
set -eu
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check aio-pika==10.2.1 aiormq==7.2.4 pika==1.4.4
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
import asyncio
import socket
import sys
import time

import aio_pika
import pika

port = int(sys.argv[1])
url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
for _ in range(600):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        break
    except OSError:
        time.sleep(0.2)


async def main() -> None:
    connection = await aio_pika.connect(url)
    for confirms in (True, False):
        try:
            await connection.channel(publisher_confirms=confirms)
            print("aio-pika, publisher_confirms", confirms, "channel opened")
        except KeyError as error:
            print("aio-pika, publisher_confirms", confirms, repr(error))
    await connection.close()


connection = pika.BlockingConnection(pika.URLParameters(url))
properties = connection._impl.server_properties
print("capabilities" in properties, properties["qpid.confirmed_publish_supported"], properties["version"])
channel = connection.channel()
try:
    channel.confirm_delivery()
except Exception as error:
    print("pika,", type(error).__name__, error.args[-1])
connection.close()
asyncio.run(main())
PYTHON
timeout 240 "$folder/venv/bin/python" "$folder/case.py" "$port" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
False true 10.1.0
pika, MethodNotImplemented Confirm.Select not Supported by Server
aio-pika, publisher_confirms True KeyError('capabilities')
aio-pika, publisher_confirms False KeyError('capabilities')
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
