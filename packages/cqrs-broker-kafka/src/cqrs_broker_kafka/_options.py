"""The options of `kafka://`. Most of their names come from Kafka or from aiokafka."""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from cqrs_brokers.options import Duration, Size, option
from cqrs_brokers.secret import Secret
from cqrs_brokers.tls import TLSOptions

__all__ = ["KafkaOptions"]


class KafkaOptions(TLSOptions):
    """The options of `kafka://`. A config string gives the options after its `?`. `open_broker` and
    `KafkaProducerAdapter` also take the options as keywords. `sasl_oauth_token_provider` and `ssl_context` can be given
    only as keywords."""

    url_parts: ClassVar = frozenset({"hosts"})
    instead_of_parts: ClassVar = {
        "userinfo": "give sasl_plain_username= and sasl_plain_password=, with security_protocol=SASL_SSL",
        "path": "each message names its topic",
    }

    client_id: str | None = option(
        None, min_length=1, max_length=249, description="Name in the broker's logs and quotas; none: aiokafka's own."
    )
    acks: Literal["all", "-1", "1", "0"] = option(
        "all",
        description="Who must have a record before its receipt: all in-sync replicas (or -1), the leader, or nobody.",
    )
    enable_idempotence: bool = option(True, description="The broker recognises and drops the client's own repeats.")
    allow_unsafe: bool = option(
        False, description="Permits acks=1, acks=0 and enable_idempotence=false, which may lose or repeat messages."
    )
    compression_type: Literal["none", "gzip", "snappy", "lz4", "zstd"] = option(
        "none", description="Compression of batches; all but gzip need the extra of the same name."
    )
    request_timeout_ms: int = option(
        15_000,
        ge=100,
        le=600_000,
        unit="ms",
        description="How long a request waits for its answer; an idempotent producer then repeats it.",
    )
    max_batch_size: Size = option(
        131_072, ge=1_024, le=16 * 2**20, description="The largest batch of records for one partition."
    )
    linger_ms: int = option(
        0, ge=0, le=60_000, unit="ms", description="How long a message waits for others before its request is written."
    )
    metadata_max_age: Duration = option(
        60.0, ge=1.0, le=3600.0, description="How old the list of partitions and leaders may become."
    )
    security_protocol: Literal["SASL_SSL", "SSL", "SASL_PLAINTEXT", "PLAINTEXT"] = option(
        "PLAINTEXT", description="Whether to use TLS (SSL) and to log in (SASL)."
    )
    sasl_mechanism: Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "OAUTHBEARER", "PLAIN"] | None = option(
        None, description="How to log in; none: PLAIN, or OAUTHBEARER when a token provider is given."
    )
    sasl_plain_username: str | None = option(None, min_length=1, description="User for PLAIN and SCRAM.")
    sasl_plain_password: Secret | None = option(None, description="Password for PLAIN and SCRAM.")
    sasl_oauth_token_provider: Any = option(
        None, keyword_only=True, description="An `aiokafka.abc.AbstractTokenProvider`, for OAUTHBEARER."
    )

    @field_validator("acks", mode="before")
    @classmethod
    def _acks_as_text(cls, value: object) -> object:
        # In Kafka's own configuration -1 means the same as all. Callers in Python may give a number.
        text = str(value) if type(value) is int else value
        return "all" if text == "-1" else text

    @model_validator(mode="after")
    def _check(self) -> KafkaOptions:
        tls = self.tls_problems(secure=self.tls, instead="give security_protocol=SSL or SASL_SSL")
        problems = [*self._safety(), *self._sasl(), *tls, *self._codec()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _safety(self) -> list[str]:
        problems = []
        if self.acks != "all" and self.enable_idempotence:
            problems.append("acks=1 and acks=0 exclude idempotence: use acks=all, or add enable_idempotence=false")
        if (self.acks != "all" or not self.enable_idempotence) and not self.allow_unsafe:
            what = "enable_idempotence=false" if self.acks == "all" else "acks=1, acks=0 and enable_idempotence=false"
            problems.append(f"{what} can lose or repeat messages: add allow_unsafe=true to accept it")
        return problems

    def _sasl(self) -> list[str]:
        user, password, provider = self.sasl_plain_username, self.sasl_plain_password, self.sasl_oauth_token_provider
        if not self.security_protocol.startswith("SASL_"):
            if self.sasl_mechanism or user or password or provider is not None:
                return ["sasl_ options need security_protocol=SASL_SSL (or SASL_PLAINTEXT)"]
            return []
        if self.mechanism == "OAUTHBEARER":
            if provider is None:
                return ["OAUTHBEARER needs sasl_oauth_token_provider="]
            from aiokafka.abc import AbstractTokenProvider  # an application with such a provider has imported it

            if not isinstance(provider, AbstractTokenProvider):
                kind = type(provider).__name__
                return [f"sasl_oauth_token_provider is a {kind}: derive it from aiokafka.abc.AbstractTokenProvider"]
            if user or password:
                return ["OAUTHBEARER takes a token provider, not sasl_plain_username and sasl_plain_password"]
            return []
        if provider is not None:
            return [f"sasl_oauth_token_provider is for OAUTHBEARER, not {self.mechanism}"]
        if not user or password is None:
            return [f"{self.mechanism} needs sasl_plain_username and sasl_plain_password"]
        return []

    def _codec(self) -> list[str]:
        codec = self.compression_type
        if codec in ("snappy", "lz4", "zstd") and importlib.util.find_spec("cramjam") is None:
            return [f"compression_type={codec} needs a library: pip install 'cqrs-broker-kafka[{codec}]'"]
        return []

    @property
    def tls(self) -> bool:
        """Whether connections use TLS."""
        return self.security_protocol.endswith("SSL")

    @property
    def mechanism(self) -> str:
        """The SASL mechanism, if `security_protocol` is one with SASL."""
        return self.sasl_mechanism or ("OAUTHBEARER" if self.sasl_oauth_token_provider is not None else "PLAIN")
