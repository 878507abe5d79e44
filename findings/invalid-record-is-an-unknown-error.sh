#!/bin/sh
# Kafka error code 87 (INVALID_RECORD, since Kafka 2.4) is unknown to aiokafka: "-1" takes the place of the number.
#
# Versions: aiokafka 0.14.0, kafka-python 3.0.12, confluent-kafka 2.16.1, Python 3.11.
# Expected: the refusal of a record (for example without a key, in a compacted topic) is told from a failure of the server.
# Seen: aiokafka maps every number that it does not know to UnknownError, whose own number is -1, so 87 cannot be seen in
# the exception. -1 is also a code of the protocol (UNKNOWN_SERVER_ERROR), after which a record may have been written;
# after 87 it certainly was not. The other two clients know the code.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check aiokafka==0.14.0 kafka-python==3.0.12 confluent-kafka==2.16.1
cat > "$folder/case.py" <<'PYTHON'
from aiokafka import errors as aiokafka
from confluent_kafka import KafkaError
from kafka import errors as kafka_python

error = aiokafka.for_code(87)
print("aiokafka:", error.__name__, error.errno, error.retriable)
print("aiokafka, -1:", aiokafka.for_code(-1).__name__)
print("kafka-python:", kafka_python.for_code(87).__name__)
print("confluent-kafka:", KafkaError(KafkaError.INVALID_RECORD).name(), KafkaError.INVALID_RECORD)
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat > "$folder/expected" <<'SEEN'
aiokafka: UnknownError -1 False
aiokafka, -1: UnknownError
kafka-python: InvalidRecordError
confluent-kafka: INVALID_RECORD 87
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
