"""From strings and keywords to a validated model, with all problems at once and no secret in them."""

import enum
import pickle
import traceback
from typing import Any, ClassVar, Literal

import pytest
from pydantic import field_validator, model_validator

from cqrs_brokers.exceptions import ConfigError, PluginContractError
from cqrs_brokers.options import BrokerOptions, Duration, Size, describe_options, option, resolve_options
from cqrs_brokers.secret import MASK, Secret
from cqrs_brokers.url import BrokerURL

CANARY = "C4N4RY"


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Options(BrokerOptions):
    url_parts: ClassVar[frozenset[str]] = frozenset({"userinfo", "hosts"})

    acks: Literal["all", 1, 0] = option("all", description="Who confirms.")
    linger_ms: int = option(0, ge=0, le=1000, unit="ms", description="Waits this long.")
    ratio: float = option(1.0, description="A ratio.")
    compress: bool = option(False, description="Squeeze.")
    colour: Colour = option(Colour.RED, description="A colour.")
    servers: list[str] = option([], description="Names.")
    ports: tuple[int, ...] = option((), description="Numbers.")
    window: Duration | None = option(None, gt=0, description="A pause.")
    buffer: Size | None = option(None, description="A size.")
    limit: int | bool | None = option(None, description="Either.")
    client_id: str = option("me", max_length=20, pattern="^[a-z]*$", description="A name.")
    key_password: Secret | None = option(None, description="Opens the key.")
    context: object = option(None, keyword_only=True, description="An object.")

    @field_validator("client_id")
    @classmethod
    def _no_admin(cls, value: str) -> str:
        if value == "admin":
            raise ValueError("admin is taken")
        return value

    @model_validator(mode="after")
    def _together(self) -> "Options":
        if self.compress and self.key_password is not None:
            raise ValueError(f"compress does not go with the key {self.key_password.reveal()}")
        return self


def resolve(text: str = "x://h", **keywords: object):
    return resolve_options(Options, url=BrokerURL.parse(text), keywords=keywords)


def problems_of(text: str = "x://h", **keywords: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        resolve(text, **keywords)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert CANARY not in str(caught.value) + repr(caught.value) + repr(pickle.loads(pickle.dumps(caught.value)))
    return caught.value.problems


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("acks=all", "acks", "all"),
        ("acks=1", "acks", 1),
        ("linger_ms=5", "linger_ms", 5),
        ("ratio=0.25", "ratio", 0.25),
        ("ratio=-2", "ratio", -2.0),
        ("compress=true", "compress", True),
        ("compress=false", "compress", False),
        ("colour=blue", "colour", Colour.BLUE),
        ("servers=a,b", "servers", ["a", "b"]),
        ("ports=1,2", "ports", (1, 2)),
        ("window=500ms", "window", 0.5),
        ("window=30s", "window", 30.0),
        ("window=1.5m", "window", 90.0),
        ("window=2h", "window", 7200.0),
        ("buffer=10", "buffer", 10),
        ("buffer=64kB", "buffer", 64_000),
        ("buffer=1MiB", "buffer", 2**20),
        ("buffer=0.5KiB", "buffer", 512),
        ("buffer=2GB", "buffer", 2 * 10**9),
        ("limit=3", "limit", 3),
        ("limit=true", "limit", True),
        ("key_password=a%26b", "key_password", Secret("a&b")),
        ("delivery_timeout=2s", "delivery_timeout", 2.0),
        ("close_timeout=0s", "close_timeout", 0.0),
        ("max_in_flight_bytes=1MiB", "max_in_flight_bytes", 2**20),
        ("retry_count=3", "retry_count", 3),
        ("retry_delay=100ms", "retry_delay", 0.1),
    ],
)
def test_text_becomes_the_value(text, name, value):
    """Each type from its text, exactly."""
    got = getattr(resolve(f"x://h?{text}").options, name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("acks=al", "acks: must be one of all, 1, 0; did you mean 'all'?"),
        ("acks=2", "acks: must be one of all, 1, 0"),
        ("linger_ms=1.5", "linger_ms: must be a whole number of milliseconds, without a unit"),
        ("linger_ms=0x10", "linger_ms: must be a whole number of milliseconds, without a unit"),
        ("linger_ms=1_000", "linger_ms: must be a whole number of milliseconds, without a unit"),
        ("linger_ms=%D9%A1", "linger_ms: must be a whole number of milliseconds, without a unit"),
        ("linger_ms=", "linger_ms: must be a whole number of milliseconds, without a unit"),
        ("linger_ms=-1", "linger_ms: must be greater than or equal to 0"),
        ("linger_ms=1001", "linger_ms: must be less than or equal to 1000"),
        ("linger_ms=" + "9" * 30, "linger_ms: must be a whole number of milliseconds, without a unit"),
        ("ratio=nan", "ratio: must be a number"),
        ("ratio=1e400", "ratio: must be a number"),
        ("compress=1", "compress: must be true or false"),
        ("compress=True", "compress: must be true or false"),
        ("compress=yes", "compress: must be true or false"),
        ("colour=green", "colour: must be one of red, blue"),
        ("servers=a,,b", "servers: must be a list with commas between its items, none of them empty"),
        ("ports=1,x", "ports: must be a whole number"),
        ("window=30", "window: must be a duration with its unit (ms, s, m, h), for example 30s"),
        ("window=30S", "window: must be a duration with its unit (ms, s, m, h), for example 30s"),
        ("window=-1s", "window: must be a duration with its unit (ms, s, m, h), for example 30s"),
        ("window=0s", "window: must be greater than 0"),
        ("buffer=1MB%20", "buffer: must be a size with its unit (B, kB, KiB, MB, MiB, GB, GiB), for example 1MiB"),
        ("buffer=1KB", "buffer: must be a size with its unit (B, kB, KiB, MB, MiB, GB, GiB), for example 1MiB"),
        ("buffer=0.5B", "buffer: must be a whole number of bytes"),
        ("client_id=admin", "client_id: admin is taken"),
        ("client_id=" + "x" * 21, "client_id: String should have at most 20 characters"),
        ("client_id=X", "client_id: String should match pattern '^[a-z]*$'"),
        ("retry_count=0", "retry_count: must be greater than or equal to 1"),
        ("delivery_timeout=0s", "delivery_timeout: must be greater than 0"),
        ("delivery_timeout=25h", "delivery_timeout: must be less than or equal to 86400"),
        ("max_in_flight=0", "max_in_flight: must be greater than or equal to 1"),
        ("akcs=all", "unknown option 'akcs'; did you mean 'acks'?"),
        ("linger.ms=1", "unknown option 'linger.ms'; did you mean 'linger_ms'?"),
        ("key_passwordfile=/x", "unknown option 'key_passwordfile'; did you mean 'key_password_file'?"),
        ("zzzz=1", "unknown option 'zzzz'"),
        ("client_id_file=/x", "unknown option 'client_id_file'; did you mean 'client_id'?"),
        ("context=1", "option 'context' is an object: give it as a keyword, not in the config string"),
        ("password=x", "option 'password' is a keyword: write user:password@, or password_file= or password_env="),
    ],
)
def test_what_is_not_clearly_meant_is_refused(text, problem):
    """No silent coercion, and the range of each option holds for strings as for keywords."""
    assert problems_of(f"x://h?{text}") == (problem,)


def test_all_problems_are_reported_at_once():
    """The URL's parts, the string's options, the keywords and the model's ranges, in one error."""
    problems = problems_of("x://u@h/path?acks=2&akcs=1&linger_ms=-1&compress=maybe", retry_count=0, nonsense=1)
    assert len(problems) == 8
    assert str(ConfigError(problems)).startswith("8 problems:\n- ")


def test_a_rule_over_several_options_is_a_problem_without_the_secret():
    """A plugin's validator may quote what it was given; the secret in it is masked."""
    assert problems_of(f"x://h?compress=true&key_password={CANARY}") == (f"compress does not go with the key {MASK}",)


def test_a_rule_over_several_options_is_not_asked_when_one_could_not_be_read():
    """It would judge defaults that nobody chose."""
    assert problems_of(f"x://h?compress=true&key_password={CANARY}&window=3") == (
        "window: must be a duration with its unit (ms, s, m, h), for example 30s",
    )


def test_a_value_that_is_masked_because_of_its_name_is_converted():
    """`pwd` and the like are masked before the plugin is known, whatever type its option has."""

    class Masked(BrokerOptions):
        max_pass: int = option(1, description="A number.")
        pwd: str = option("", description="A text.")

    url = BrokerURL.parse("x://?max_pass=4&pwd=a")
    assert resolve_options(Masked, url=url).options.model_dump(include={"max_pass", "pwd"}) == {
        "max_pass": 4,
        "pwd": "a",
    }


def test_an_unknown_option_after_a_secret_is_not_named():
    """It may be the second half of a password with an unencoded `&`."""
    (problem,) = problems_of(f"x://h?key_password=a&{CANARY}=b")
    assert problem.startswith("unknown option after 'key_password'; its name is not shown")


@pytest.mark.parametrize("size", [1, 999, 1_234_567, 1_048_577, 80 * 2**20, 123_456_789_012, 10**12])
def test_a_size_is_shown_with_every_digit(size: int) -> None:
    """Read back, it is the same size."""
    shown = resolve(buffer=size).effective["buffer"].value
    assert resolve(f"x://h?buffer={shown}").options.buffer == size


def test_keywords_override_the_string_and_every_option_knows_its_origin(tmp_path, monkeypatch):
    """Default, string, keyword, file and environment."""
    (tmp_path / "pw").write_text(f"{CANARY}\n")
    monkeypatch.setenv("KEY_PW", CANARY)
    resolved = resolve(
        f"x://bob@h?linger_ms=1&acks=1&key_password_env=KEY_PW&password_file={tmp_path / 'pw'}",
        acks=0,
        context=self_test,
    )
    assert resolved.options.acks == 0
    assert resolved.options.linger_ms == 1
    assert resolved.url.password == resolved.options.key_password == Secret(CANARY)
    origins = {name: (item.value, item.origin) for name, item in resolved.effective.items()}
    assert origins["acks"] == ("0", "keyword")
    assert origins["linger_ms"] == ("1", "string")
    assert origins["ratio"] == ("1.0", "default")
    assert origins["password"] == (MASK, "file")
    assert origins["key_password"] == (MASK, "environment")
    assert origins["context"] == ("<function>", "keyword")
    assert origins["delivery_timeout"] == ("30s", "default")
    assert origins["max_in_flight_bytes"] == ("80MiB", "default")
    shown = repr(resolved) + str(resolved) + repr(resolved.options) + repr(resolved.options.model_dump())
    assert CANARY not in shown + resolved.options.model_dump_json(exclude={"context"})
    with pytest.raises(TypeError):
        pickle.dumps(resolved.options)


def self_test() -> None:
    """Any object."""


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("acks", 0, 0),
        ("delivery_timeout", 5, 5.0),
        ("delivery_timeout", "5s", 5.0),
        ("window", 3, 3.0),
        ("window", None, None),
        ("linger_ms", "7", 7),
        ("colour", Colour.BLUE, Colour.BLUE),
        ("colour", "blue", Colour.BLUE),
        ("servers", ["a"], ["a"]),
        ("key_password", "x", Secret("x")),
        ("key_password", Secret("x"), Secret("x")),
    ],
)
def test_keywords_take_python_values_and_the_text_of_strings(name, value, expected):
    """The adapters accept every option of the string by name."""
    assert getattr(resolve(**{name: value}).options, name) == expected


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("linger_ms", 1.0, "linger_ms: must be a valid integer"),
        ("linger_ms", True, "linger_ms: must be a valid integer"),
        ("compress", 1, "compress: must be a valid boolean"),
        ("delivery_timeout", True, "delivery_timeout: must be a valid number"),
        ("delivery_timeout", float("nan"), "delivery_timeout: must be less than or equal to 86400"),
        ("delivery_timeout", None, "delivery_timeout: must be a valid number"),
        ("acks", 3, "acks: must be 'all', 1 or 0"),
        ("key_password", b"C4N4RY", "key_password: must be text"),
        ("key_password", "", "key_password: is empty"),
        ("password", 5, "password: must be text"),
        ("password_file", 5, "password_file: must be text, not int"),
        (
            "password_file",
            "/does/not/exist/C4N4RY",
            "password_file: the file cannot be read (No such file or directory)",
        ),
        ("password_env", "C4N4RY", "password_env: the environment variable is not set"),
        ("nonsense", 1, "unknown option 'nonsense'"),
        ("retry_count", 0, "retry_count: must be greater than or equal to 1"),
    ],
)
def test_keywords_are_as_strict_as_strings(name, value, problem):
    """No coercion between types; the value is never quoted."""
    assert problems_of(**{name: value}) == (problem,)


def test_credentials_of_the_url():
    """A user needs a password, from one place; a keyword overrides the string's."""
    assert resolve("x://u:a@h").url.password == Secret("a")
    assert resolve("x://u:a@h", password="b").url.password == Secret("b")
    assert resolve("x://u@h", password=Secret("b")).url.password == Secret("b")
    assert problems_of("x://u@h") == (
        "a user without a password: write user:password@, or use password_file=, password_env=",
    )
    assert problems_of("x://h", password=CANARY) == (
        "a password without a user: put the user before an '@' in front of the hosts",
    )
    assert (
        problems_of("x://u:a@h?password_env=X")[0] == "the password is given twice: in the user part and as an option"
    )
    assert problems_of("x://h?key_password=a&key_password_env=b") == (
        "option 'key_password' is given twice: use one of key_password, key_password_file, key_password_env",
    )


@pytest.mark.parametrize("password", [Secret(""), "a\nb", Secret(f"{CANARY}\n"), MASK])
def test_a_password_that_a_config_string_cannot_have_is_refused(password):
    """Given as a keyword, too, so that the URL with the password can be read again."""
    (problem,) = problems_of("x://u@h", password=password)
    assert problem.startswith("the password ")


def test_parts_of_the_url_that_the_plugin_does_not_read_are_refused():
    """Nothing in a config string is silently ignored."""
    assert problems_of("x://h/vhost") == ("x:// takes no path",)
    assert resolve("x://h/").options.acks == "all"
    with pytest.raises(ConfigError) as caught:
        resolve_options(BrokerOptions, url=BrokerURL.parse(f"x://u:{CANARY}@h"))
    assert caught.value.problems == ("x:// takes no user", "x:// takes no hosts")


def test_a_model_made_directly_raises_config_error():
    """pydantic's own error, which carries the input, never leaves."""
    with pytest.raises(ConfigError) as caught:
        Options(key_password=5, linger_ms=CANARY, zzz=CANARY)
    assert CANARY not in "".join(traceback.format_exception(caught.value)).replace(f"linger_ms={CANARY}", "")
    assert caught.value.__context__ is None
    assert len(caught.value.problems) == 3
    with pytest.raises(AttributeError, match="cannot be changed"):
        Options().acks = 1


def test_a_model_made_directly_masks_a_secret_that_is_plain_text():
    """A validator that runs before pydantic's own sees the text, and may quote it."""

    class Quoting(BrokerOptions):
        token: Secret | None = option(None, description="A token.")

        @field_validator("token", mode="before")
        @classmethod
        def _quotes(cls, value: object) -> object:
            raise ValueError(f"cannot use {value}")

    with pytest.raises(ConfigError) as caught:
        Quoting(token=CANARY)
    assert caught.value.problems == (f"token: cannot use {MASK}",)


def test_the_listing_is_made_from_the_model():
    """Documentation and `describe` cannot drift from validation."""
    listed = {item.name: item for item in describe_options(Options)}
    assert set(listed) == {*Options.model_fields, "password"}
    assert listed["linger_ms"][1:] == ("0", "0", "default", "ms", "Waits this long.")
    assert listed["window"].unit == "s"
    assert listed["delivery_timeout"].default == "30s"
    assert listed["max_message_bytes"].default == "1MB"


def test_a_required_option_is_asked_for():
    """An option without a default."""

    class Required(BrokerOptions):
        topic: str = option(description="Must be given.")

    with pytest.raises(ConfigError, match=r"^topic: is required$"):
        resolve_options(Required)
    assert resolve_options(Required, keywords={"topic": "t"}).options.topic == "t"
    assert describe_options(Required)[-1].default == "required"


def test_models_that_could_leak_or_ignore_something_break_the_contract():
    """A secret whose name does not say so, a secret name that is no `Secret`, text that cannot become the type."""

    def model(**annotations: Any) -> type[BrokerOptions]:
        fields = {name: option(None, description="") for name in annotations}
        return type("Bad", (BrokerOptions,), {"__annotations__": annotations, "__module__": __name__, **fields})

    with pytest.raises(PluginContractError, match=r"Bad.key: the type of an option is Secret exactly when"):
        resolve_options(model(key=Secret | None))
    with pytest.raises(PluginContractError, match=r"Bad.auth_token: the type of an option is Secret exactly when"):
        resolve_options(model(auth_token=str | None))
    with pytest.raises(PluginContractError, match=r"Bad.thing: text cannot become this type"):
        resolve_options(model(thing=dict[str, str] | None))


def test_a_validator_that_raises_something_else_breaks_the_contract():
    """A bug of the plugin is named as such, without what it may quote."""

    class Buggy(BrokerOptions):
        @model_validator(mode="after")
        def _bug(self) -> "Buggy":
            raise KeyError(CANARY)

    with pytest.raises(PluginContractError, match=r"Buggy raised KeyError, not ValueError") as caught:
        resolve_options(Buggy)
    assert caught.value.__context__ is None


def test_a_model_that_cannot_be_built_breaks_the_contract():
    """Its author gets the name of the model and pydantic's reason as the cause."""

    class Unbuilt(BrokerOptions):
        count: "NotDefinedAnywhere | None" = option(None, keyword_only=True, description="")  # noqa: F821

    with pytest.raises(PluginContractError, match="Unbuilt cannot be built") as caught:
        resolve_options(Unbuilt)
    assert caught.value.__cause__ is not None
