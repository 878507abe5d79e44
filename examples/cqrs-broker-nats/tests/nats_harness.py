"""The harness of `nats://`: a private nats-server with JetStream, read back with nats-py's JetStream client."""

import json

import nats
from cqrs_brokers import Message
from cqrs_brokers.pipeline import header_text
from cqrs_brokers_testkit.conformance import Record, Refusal, Target
from cqrs_brokers_testkit.server_harness import ServerHarness


class NatsHarness(ServerHarness):
    url, notices_within, duplicate_window = "nats://localhost", 12.0, 120.0
    program, search, has_tls, login = "nats-server", ("~/go/bin",), True, ("app", "app-password")
    install = "go install github.com/nats-io/nats-server/v2@v2.15.3"
    not_applicable = {
        "delivery.nack-is-not-success": "JetStream stores a message or refuses it, never one of two copies",
        "delivery.blocked-is-waited-out": "when a stream is full it refuses; it does not block",
        "delivery.wrong-permission": "a user who may connect can only be forbidden single subjects",
    }

    def configure(self, server):
        users = [{"user": "app", "password": "app-password", "permissions": {"publish": {"deny": "forbidden.>"}}}]
        settings = {"port": server.port, "authorization": {"users": users}}
        if (known := server.certificates) is not None:
            settings["tls"] = {"cert_file": str(known.server), "key_file": str(known.server_key)}
        (server.folder / "nats.conf").write_text(json.dumps(settings))
        return ["-a", "127.0.0.1", "-js", "-sd", str(server.folder), "-c", "nats.conf"]

    def client_url(self, host, port, login, cafile, tls):
        query = f"?declare=stream&stream=all&subjects=*&ssl_cafile={cafile}" if cafile else ""
        return f"nats{'s' if tls else ''}://{login[0]}:{login[1]}@{host}:{port}{query}"

    def prepare(self):
        url = self.client_url("127.0.0.1", self.server.port, self.login, None, False)
        self.client = self.run_async(nats.connect(url, max_reconnect_attempts=-1, reconnect_time_wait=0.05))
        self.streams = self.client.jetstream()
        self.at_end(lambda: self.run_async(self.client.close()))

    def create_topic(self, topic, **settings):
        if set(topic) & set("*>"):
            raise ValueError("a stream with this subject would take others, too")
        settings |= {"name": f"stream-{hash(topic)}", "subjects": [topic], "duplicate_window": self.duplicate_window}
        self.run_async(self.streams.add_stream(**settings))

    async def read(self, topic):
        info = await self.streams.stream_info(await self.streams.find_stream_name_by_subject(topic))
        reader = await self.streams.subscribe(topic, ordered_consumer=True)
        messages = [await reader.next_msg(5.0) for _ in range(info.state.messages)]
        await reader.unsubscribe()
        return [record(message) for message in messages]

    def missing_destination(self):
        return Target(self.url, self.new_topic_name())

    def forbidden_destination(self):
        return Target(self.url, "forbidden.orders")

    def refuse_next(self):
        self.create_topic(topic := self.new_topic_name(), max_msg_size=20_000)
        return Refusal(self.url, topic, Message("Refused", topic, bytes(50_000)))

    def stuck_destination(self):
        self.create_topic(topic := self.new_topic_name(), no_ack=True)  # its stream never answers
        return Target(self.url, topic)

    def foreign_answers(self):
        async def answer(message):
            await message.respond(b'{"seen": true}')

        self.run_async(self.client.subscribe("echo", cb=answer))
        return Target(self.url, "echo")


def record(message):
    headers, offset = dict(message.headers), message.metadata.sequence.stream
    del headers["Nats-Msg-Id"]
    return Record.of_headers(message.subject, headers, message.data, decode=header_text, offset=offset)
