"""The harness of `nats://`: a private nats-server with JetStream, read back with nats-py's JetStream client."""

import json

import nats
from cqrs_brokers.pipeline import header_text
from cqrs_brokers_testkit.conformance import Record, Target
from cqrs_brokers_testkit.frames import forgeries, line_length, with_block
from cqrs_brokers_testkit.server_harness import ServerHarness

ERROR = b'{"error": {"code": %d, "err_code": %d}}'


class NatsHarness(ServerHarness):
    url, tls_scheme, other_servers = "nats://localhost", "natss", "declare=stream&stream=all&subjects=*"
    program, search, install = "nats-server", ("~/go/bin",), "go install github.com/nats-io/nats-server/v2@v2.15.3"
    # A double does not hold the first sequence.
    has_tls, notices_within, stream = True, 12.0, {"duplicate_window": 120.0, "first_seq": 2**53 + 1}
    small_topic, small_server, login = {"max_msg_size": 20_000}, {"max_payload": 50_000}, ("app", "app:p%41@wörd")
    not_applicable = {
        "delivery.nack-is-not-success": "JetStream stores a message or refuses it, never one of two copies",
        "delivery.blocked-is-waited-out": "when a stream is full it refuses; it does not block",
        "delivery.wrong-permission": "a user who may connect can only be forbidden single subjects",
    }

    def configure(self, server):
        users = [{"user": "app", "password": "app:p%41@wörd", "permissions": {"publish": {"deny": "forbidden.>"}}}]
        settings = {"port": server.port, "authorization": {"users": users}, **server.settings}
        if (known := server.certificates) is not None:
            settings["tls"] = {"cert_file": str(known.server), "key_file": str(known.server_key)}
        # Its form is not quite JSON: it knows no \u.
        (server.folder / "nats.conf").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
        return ["-a", "127.0.0.1", "-js", "-sd", str(server.folder), "-c", "nats.conf"]

    def prepare(self):
        options = {"max_reconnect_attempts": -1, "reconnect_time_wait": 0.05}
        # nats-py takes a password as it is written in the address, with its `%XX`.
        self.client = self.run_async(nats.connect(header_text(self.direct_url), **options))
        self.streams = self.client.jetstream()
        self.at_end(lambda: self.run_async(self.client.close()))

    def create_topic(self, topic, **settings):
        if set(topic) & set("*>"):
            raise ValueError("a stream with this subject would take others, too")
        self.run_async(self.streams.add_stream(name=f"s{hash(topic)}", subjects=[topic], **self.stream, **settings))

    async def read(self, topic):
        info = await self.streams.stream_info(await self.streams.find_stream_name_by_subject(topic))
        reader = await self.streams.subscribe(topic, ordered_consumer=True)
        found = [await reader.next_msg(5.0) for _ in range(info.state.messages)]
        await reader.unsubscribe()
        form = {"decode": header_text, "without": ["Nats-Msg-Id"]}
        return [Record.of_headers(topic, m.headers, m.data, offset=m.metadata.sequence.stream, **form) for m in found]

    def missing_destination(self):
        return Target(self.url, self.new_topic_name())

    def forbidden_destination(self):
        return Target(self.url, "forbidden.orders")

    def stuck_destination(self):
        self.create_topic(topic := self.new_topic_name(), no_ack=True)  # its stream never answers
        return Target(self.url, topic)

    def foreign_answers(self):
        async def answer(message):
            await message.respond(b'{"seen": true, "seq": 7}')

        self.run_async(self.client.subscribe("echo", cb=answer))
        return Target(self.url, "echo")

    def forged_answers(self):
        return forgeries(
            line_length(r"H?MSG .* (\d+)"),
            lambda frame: frame.startswith(b"MSG _INBOX."),
            refused={"a refusal": with_block(ERROR % (400, 10109)), "full": with_block(ERROR % (503, 10077))},
            unknown={"an error that NATS does not have": with_block(ERROR % (503, 19999))},
            any_order=True,
        )
