"""The options of a broker: one pydantic model per plugin, made from strings and keywords.

A plugin declares its options:

    class AcmeOptions(BrokerOptions):
        url_parts = frozenset({"userinfo", "hosts"})
        client_id: str = option("cqrs-brokers", description="Name shown in the broker's logs.")
        acks: Literal["all", "1", "0"] = option("all", description="Who must have the record before the receipt.")
        ssl_key_password: Secret | None = option(None, description="Decrypts the private key.")
        ssl_context: ssl.SSLContext | None = option(None, description="Replaces the ssl_* options.", keyword_only=True)

and gets an instance, validated, in `open_message_broker(url, options)`. Names, types, defaults, ranges, units and
descriptions are read from the model by validation, by `Broker.describe()` and by the documentation.
A rule over several options is a pydantic `model_validator(mode="after")` that raises `ValueError` with a sentence.

A secret option has the type `Secret` (or `Secret | None`) and a name that says so (`url.names_a_secret`), so that it is
redacted before its plugin is known. Its `<name>_file` and `<name>_env` exist without being declared.
"""

from ._config.model import BrokerOptions, option
from ._config.resolving import EffectiveOption, ResolvedOptions, describe_options, resolve_options
from ._config.values import Duration, Size

__all__ = [
    "BrokerOptions",
    "Duration",
    "EffectiveOption",
    "ResolvedOptions",
    "Size",
    "describe_options",
    "option",
    "resolve_options",
]
