#!/bin/sh
# OpenTelemetry's SDK: a meter that makes an observable instrument twice never calls the second one's callbacks, and
# says nothing.
#
# Versions: opentelemetry-sdk 1.45.2, Python 3.11.
# Expected: what a library measures for each of its clients is in the output for each of them, or a warning says that the
# instrument exists already. Counters and histograms that are made twice both count.
# Seen: two objects make an observable gauge with the same name, unit and description, as a library does that makes its
# instruments for each connection. Only the first one's callback runs; the value of the second is nowhere. Nothing is
# logged. A counter that is made twice has the sum of both.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check opentelemetry-sdk==1.45.2
cat > "$folder/case.py" <<'PYTHON'
import logging
import warnings

from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

said = []
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.DEBUG)

reader = InMemoryMetricReader()
provider = MeterProvider([reader])


class Client:
    def __init__(self, name: str, waiting: int) -> None:
        meter = provider.get_meter("a library")
        meter.create_observable_gauge("waiting", [lambda _: [Observation(waiting, {"client": name})]])
        meter.create_counter("sent").add(waiting)


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    clients = [Client("one", 3), Client("two", 4)]
    data = reader.get_metrics_data()
for metric in sorted(data.resource_metrics[0].scope_metrics[0].metrics, key=lambda metric: metric.name):
    print(metric.name, sorted((dict(point.attributes).get("client", ""), point.value) for point in metric.data.data_points))
print("logged or warned:", len(said) + len(caught))
PYTHON
"$folder/venv/bin/python" "$folder/case.py" > "$folder/seen"
cat "$folder/seen"
cat > "$folder/expected" <<'SEEN'
sent [('', 7)]
waiting [('one', 3)]
logged or warned: 0
SEEN
diff "$folder/expected" "$folder/seen" && echo "as found"
