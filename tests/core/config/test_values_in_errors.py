"""An error about an option names the option and what would be right, and quotes no value: config-strings.md says so."""

import pytest

from cqrs_brokers import ConfigError
from cqrs_brokers.options import describe_options, resolve_options
from cqrs_brokers.url import BrokerURL

VALUE = "c4nary-VALUE"

OPTIONS = [
    (scheme, option.name)
    for scheme in ("amqp", "kafka", "memory", "devnull")
    for option in describe_options(__import__(f"cqrs_broker_{scheme}").broker_options())
]


@pytest.mark.parametrize(("scheme", "option"), OPTIONS)
@pytest.mark.parametrize("keyword", [False, True])
def test_no_value_is_quoted(scheme: str, option: str, keyword: bool) -> None:
    """For every option of every broker: in the string, and as a keyword of a wrong type."""
    plugin = __import__(f"cqrs_broker_{scheme}")
    url = BrokerURL.parse(f"{scheme}://h" + ("" if keyword else f"?{option}={VALUE}&nonsense=1"))
    keywords = {option: [VALUE], "nonsense": VALUE} if keyword else {}
    with pytest.raises(ConfigError) as caught:
        resolve_options(plugin.broker_options(), url=url, keywords=keywords)
    assert VALUE not in str(caught.value)
