#!/bin/sh
# RabbitMQ confirms 200 messages into a quorum queue of at most 5 that is told to refuse what does not fit.
#
# Versions: RabbitMQ 3.10.8 of Debian 12 (the same with 4.0.5 and 4.3.6), Erlang 25, pika 1.4.4, Python 3.11.
# Expected: x-max-length=5 with x-overflow=reject-publish takes 5 messages and refuses the others with basic.nack, as a
# classic queue does.
# Seen: the classic queue takes exactly 5. The quorum queue learns that it is full with a delay: of 200 messages that are
# written at once it takes, and confirms, many more than 5.
# Needs Debian's Erlang (apt-get install erlang-base erlang-nox); RabbitMQ itself is unpacked into the folder.
set -eu
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill -9 "-$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pika==1.4.4
(cd "$folder" && apt-get download -q rabbitmq-server=3.10.8-1.1+deb12u1 > apt.log 2>&1 && dpkg -x rabbitmq-server_*.deb .)
ports=$(python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*[one.getsockname()[1] for one in held])')
set -- $ports
mkdir "$folder/home"
cat > "$folder/rabbitmq.conf" <<CONF
listeners.tcp.1 = 127.0.0.1:$1
CONF
echo "[]." | tee "$folder/plugins" > "$folder/advanced.config"
env HOME="$folder/home" ERL_EPMD_PORT="$2" ERL_EPMD_ADDRESS=127.0.0.1 RUNNING_UNDER_SYSTEMD=true \
    RABBITMQ_CONF_ENV_FILE=/dev/null RABBITMQ_NODENAME="finding$1@localhost" RABBITMQ_DIST_PORT="$3" \
    RABBITMQ_CONFIG_FILE="$folder/rabbitmq.conf" RABBITMQ_ADVANCED_CONFIG_FILE="$folder/advanced.config" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$folder/plugins" RABBITMQ_MNESIA_BASE="$folder/data" RABBITMQ_LOG_BASE="$folder" \
    RABBITMQ_LOGS=- RABBITMQ_PID_FILE="$folder/pid" RABBITMQ_GENERATED_CONFIG_DIR="$folder/generated" \
    setsid "$folder/usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server" > "$folder/rabbitmq.log" 2>&1 &
server=$!
cat > "$folder/case.py" <<'PYTHON'
import sys
import time

import pika

parameters = pika.URLParameters(f"amqp://guest:guest@127.0.0.1:{sys.argv[1]}/%2F")
give_up = time.monotonic() + 120
while True:
    try:
        connection = pika.BlockingConnection(parameters)
        break
    except (pika.exceptions.AMQPError, OSError):
        if time.monotonic() > give_up:
            raise
        time.sleep(0.5)
print("RabbitMQ", connection._impl.server_properties["version"])
for kind in ("classic", "quorum"):
    channel = connection.channel()
    limits = {"x-queue-type": kind, "x-max-length": 5, "x-overflow": "reject-publish"}
    channel.queue_declare(kind, durable=True, arguments=limits)
    # Below the blocking facade, which waits for each confirm: fast publishers do not.
    channel._impl.confirm_delivery(lambda frame: None)
    for _ in range(200):
        channel._impl.basic_publish("", kind, b"x")
    connection.process_data_events(time_limit=3)
    depth = channel.queue_declare(kind, passive=True).method.message_count
    print(kind, "takes", "5" if depth == 5 else "more than 20" if depth > 20 else f"{depth}")
connection.close()
PYTHON
timeout 240 "$folder/venv/bin/python" "$folder/case.py" "$1" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
RabbitMQ 3.10.8
classic takes 5
quorum takes more than 20
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
