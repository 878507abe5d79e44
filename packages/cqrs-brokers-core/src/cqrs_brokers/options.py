"""The options of a broker. The values of the options come from config strings and keywords. A plugin declares its
options as a pydantic model:

    class AcmeOptions(BrokerOptions):
        url_parts = frozenset({"userinfo", "hosts"})
        client_id: str = option("cqrs-brokers", description="Name shown in the broker's logs.")
        acks: Literal["all", "1", "0"] = option("all", description="Who must have the record before the receipt.")
        ssl_key_password: Secret | None = option(None, description="Decrypts the private key.")
        ssl_context: ssl.SSLContext | None = option(None, description="Replaces the ssl_* options.", keyword_only=True)

The plugin's hook `open_message_broker(url, options)` gets a validated instance of this class. Validation,
`Broker.describe()` and the documentation read the names, types, defaults, ranges, units and descriptions from the
class. A rule about several options is a pydantic `model_validator(mode="after")`. Such a validator raises a
`ValueError` with one sentence.

A secret option has the type `Secret` (or `Secret | None`). Its name must contain a word such as "password" or "token"
(see `url.names_a_secret`), so that core can mask the value before core knows the plugin. The name of any other option
must not contain such a word, unless the option is keyword-only. For a secret option `<name>` that is not keyword-only,
the options `<name>_file` and `<name>_env` exist, too: the plugin does not declare them.
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
