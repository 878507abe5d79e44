"""A secret that is planted in every secret place of a config string shows nowhere on the way to an open `Broker`."""

import copy
import logging
import pickle
import warnings
from typing import ClassVar

import pytest

from cqrs_brokers import Message, MessageBroker, open_broker
from cqrs_brokers.exceptions import BrokerError
from cqrs_brokers.hooks import hookimpl, register_plugin, unregister_plugin
from cqrs_brokers.options import BrokerOptions, option
from cqrs_brokers.secret import Secret

CANARY = "QK4N4RY-s3cret"


class Options(BrokerOptions):
    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts", "path"})
    ssl_password: Secret | None = option(None, description="A passphrase.")
    token_provider: object = option(None, keyword_only=True, description="An object.")


class Keeps(MessageBroker):
    def __init__(self, url, options):
        self.url, self.options = url, options

    async def send_message(self, message: Message) -> None: ...


def opening(url, options):
    return Keeps(url, options)


@pytest.fixture
def _plugin():
    hooks = {"broker_options": lambda: Options, "open_message_broker": opening}
    plugin = type("Plugin", (), {name: staticmethod(hookimpl(hook)) for name, hook in hooks.items()})()
    register_plugin("canary", plugin)
    yield
    unregister_plugin(plugin)


@pytest.fixture(params=["string", "keyword", "file", "environment"])
def broker(request, tmp_path, monkeypatch, _plugin):
    """The secret given in each of the ways there are."""
    (tmp_path / "pw").write_text(CANARY)
    monkeypatch.setenv("PW", CANARY)
    provider = type("Provider", (), {"__repr__": lambda self: CANARY})()
    url, keywords = {
        "string": (f"canary://u:{CANARY}@h/v?ssl_password={CANARY}", {}),
        "keyword": ("canary://u@h/v", {"password": CANARY, "ssl_password": CANARY}),
        "file": (f"canary://u@h/v?password_file={tmp_path}/pw&ssl_password_file={tmp_path}/pw", {}),
        "environment": ("canary://u@h/v?password_env=PW&ssl_password_env=PW", {}),
    }[request.param]
    return open_broker(url, token_provider=provider, **keywords)


async def test_no_public_object_shows_it(broker, caplog):
    """str, repr, format, copies, pydantic's dumps, `describe()`, health, logs and warnings; pickle refuses."""
    caplog.set_level(logging.DEBUG)
    driver = broker.driver
    assert driver.url.password.reveal() == driver.options.ssl_password.reveal() == CANARY
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await broker.send_message(Message("N", "t", {}))
        health = await broker.health()
        await broker.close()
    subjects = [
        broker,
        broker.url,
        broker.describe(),
        health,
        driver.url,
        driver.url.query,
        driver.url.password,
        driver.options,
        caught,
    ]
    subjects += [copy.copy(driver.url), copy.deepcopy(driver.options.ssl_password)]
    for subject in subjects:
        assert CANARY not in f"{subject} {subject!r}"
    assert CANARY not in str(driver.options.model_dump(exclude={"token_provider"}))
    assert CANARY not in driver.options.model_dump_json(exclude={"token_provider"})
    assert CANARY not in caplog.text
    assert broker.describe()["options"]["password"].value == "**********"
    assert broker.describe()["options"]["token_provider"].value == "<Provider>"
    for subject in (driver.url, driver.options, driver.options.ssl_password):
        with pytest.raises(TypeError) as refused:
            pickle.dumps(subject)
        assert CANARY not in str(refused.value)


@pytest.mark.usefixtures("_plugin")
@pytest.mark.parametrize(
    ("url", "keywords"),
    [
        (f"canary://u:{CANARY}@h/v?ssl_password={CANARY}&nonsense=1", {"max_in_flight": CANARY}),
        (f"canary://u:{CANARY}@h?delivery_timeout={CANARY}", {"ssl_password": 5}),
        (f"canary://h?ssl_password_file={CANARY}&password_env={CANARY}", {}),
        (f"nowhere://u:{CANARY}@h", {}),
        (f"canary://u:{CANARY}@h:port", {}),
        (f"canary://u@h?password_file={CANARY}", {"password_env": CANARY}),
    ],
)
def test_no_error_shows_it(url, keywords):
    """Wrong options beside it, in it, and schemes that are not there; pickled errors too."""
    with pytest.raises(BrokerError) as caught:
        open_broker(url, **keywords)
    assert CANARY not in str(caught.value) + repr(caught.value) + repr(vars(caught.value))
    assert CANARY.encode() not in pickle.dumps(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
