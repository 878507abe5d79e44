"""The table of installed plugins, read from metadata alone."""

import subprocess
import sys

import importlib_metadata
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from cqrs_brokers import BrokerInfo, available_brokers
from cqrs_brokers._discovery.discovery import find_owner
from cqrs_brokers._discovery.installed import installed
from cqrs_brokers._discovery.requirements import plainly_holds
from cqrs_brokers.exceptions import AmbiguousPluginError, ConfigError, PluginLoadError, PluginNotFoundError

GROUP = "[cqrs_brokers]\n"


def statuses() -> dict[str, str]:
    return {f"{info.name} {info.distribution}": info.status for info in available_brokers()}


def test_a_plugin_is_listed_without_being_imported(install):
    """Listing imports nothing, even a module that would not survive it."""
    install("cqrs-broker-acme", "2.1", GROUP + "acme = acme_mod\nacme+tls = acme_mod:tls", modules={"acme_mod": "1/0"})
    assert available_brokers() == [
        BrokerInfo("acme", "cqrs-broker-acme", "2.1", "acme_mod", "ready", ""),
        BrokerInfo("acme+tls", "cqrs-broker-acme", "2.1", "acme_mod:tls", "ready", ""),
    ]
    assert "acme_mod" not in sys.modules


def test_the_table_is_read_once(install, monkeypatch):
    """The second time is free."""
    install("cqrs-broker-acme", entry_points=GROUP + "acme = acme_mod")
    first = available_brokers()
    monkeypatch.setattr(importlib_metadata, "distributions", lambda: pytest.fail("read again"))
    assert available_brokers() == first


@pytest.mark.parametrize(
    ("entry_points", "why"),
    [
        (GROUP + "acme = acme_mod\n# \xff", "is not UTF-8"),
        (GROUP + "acme", "not name = module:attribute"),
        (GROUP + "acme =", "not name = module:attribute"),
        (GROUP + "acme = 1x", "not name = module:attribute"),
        (GROUP + "acme = a b", "not name = module:attribute"),
        (GROUP + "acme = a:b:c", "not name = module:attribute"),
        (GROUP + "acme = a..b", "not name = module:attribute"),
        (GROUP + "acme = a\nacme = b", "names the scheme twice"),
        (GROUP + "acme = a\x00b", "not name = module:attribute"),
    ],
)
def test_a_corrupt_file_breaks_only_its_own_scheme(install, entry_points, why):
    """The other distributions stay ready; opening the broken one says which distribution and why."""
    install("cqrs-broker-acme", entry_points=entry_points.encode("latin-1"))
    install("cqrs-broker-good", entry_points=GROUP + "good = good_mod")
    assert statuses() == {"acme cqrs-broker-acme": "broken metadata", "good cqrs-broker-good": "ready"}
    assert find_owner("good").value == "good_mod"
    with pytest.raises(PluginLoadError, match=why) as caught:
        find_owner("acme")
    assert str(caught.value).startswith(
        "acme:// is provided by cqrs-broker-acme 1.0, which is installed but broken: its entry_points.txt "
    )


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xfe\x00",
        b"[console_scripts\nx",
        b"[console_scripts]\nno equals sign",
        b"\x00" * 100,
        b"[]",
        b"[cqrs",
        b"=",
    ],
)
def test_corruption_outside_our_group_is_not_ours(install, junk):
    """The standard library's `entry_points()` raises for some of these, for every package at once."""
    install("something-else", entry_points=junk)
    install("cqrs-broker-good", entry_points=GROUP.encode() + b"good = good_mod")
    assert statuses() == {"good cqrs-broker-good": "ready"}


def test_a_file_is_read_as_a_whole(install):
    """A malformed line of another group breaks the distribution's own schemes, and no others."""
    install("cqrs-broker-amqp", entry_points="[console_scripts]\nno equals sign\n" + GROUP + "amqp = a\namqps = a")
    install("my-plugin", entry_points=GROUP + "mine = mine_mod\nno equals sign")
    install("cqrs-broker-good", entry_points=GROUP + "good = good_mod")
    assert statuses() == {
        " my-plugin": "broken metadata",
        "amqp cqrs-broker-amqp": "broken metadata",
        "amqps cqrs-broker-amqp": "broken metadata",
        "good cqrs-broker-good": "ready",
    }


def test_a_leftover_of_an_interrupted_upgrade_is_skipped(install):
    """A folder without METADATA does not hide the whole one of the same name, whichever comes first."""
    for folder, version in (("a", "1.0"), ("b", "3.0")):
        leftover = install("cqrs-broker-acme", version, GROUP + "acme = old_mod", folder=folder)
        (leftover / "METADATA").unlink()
        install("cqrs-broker-acme", "2.0", GROUP + "acme = acme_mod", folder="b")
        installed.cache_clear()
        assert available_brokers() == [BrokerInfo("acme", "cqrs-broker-acme", "2.0", "acme_mod", "ready", "")]


def test_a_name_that_is_no_scheme_is_shown_as_broken(install):
    """Upper case, spaces and underscores cannot be schemes."""
    install("cqrs-broker-acme", entry_points=GROUP + "Ac me = acme_mod")
    (info,) = available_brokers()
    assert (info.name, info.status) == ("Ac me", "broken metadata")
    assert "not a URL scheme" in info.reason


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        (b"", "gives no version"),
        (b"\xff\xfe", "metadata cannot be read (UnicodeDecodeError)"),
        (b"Name: cqrs-broker-acme\n", "gives no version"),
        (
            b"Name: cqrs-broker-acme\nVersion: 1\nRequires-Dist: cqrs-brokers-core ><\n",
            "requirement on cqrs-brokers-core",
        ),
    ],
)
def test_broken_metadata_is_told(install, metadata, why):
    """The distribution's name is then that of its folder."""
    install("cqrs-broker-acme", entry_points=GROUP + "acme = acme_mod", metadata=metadata)
    (info,) = available_brokers()
    assert (info.name, info.distribution, info.status) == ("acme", "cqrs-broker-acme", "broken metadata")
    assert why in info.reason


def test_an_old_egg_info_is_read(install, tmp_path):
    """Its requirements are in a file of their own."""
    egg = tmp_path / "site" / "cqrs_broker_egg.egg-info"
    egg.mkdir()
    (egg / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: cqrs-broker-egg\nVersion: 3\n")
    (egg / "entry_points.txt").write_text(GROUP + "egg = egg_mod")
    (egg / "requires.txt").write_text("cqrs-brokers-core>=9\n")
    installed.cache_clear()
    (info,) = available_brokers()
    assert (info.version, info.status) == ("3", "incompatible")


def test_the_shadowed_version_is_not_seen(install):
    """Of two versions on the path only the first can be imported; so one without our group hides one with it."""
    install("cqrs-broker-acme", "2.0", GROUP + "acme = acme_two", folder="a")
    install("Cqrs.Broker_ACME", "1.0", GROUP + "acme = acme_one\nold = acme_one", folder="b")
    assert [(info.name, info.version) for info in available_brokers()] == [("acme", "2.0")]
    install("cqrs-broker-gone", "2.0", folder="a")
    install("cqrs-broker-gone", "1.0", GROUP + "gone = gone_mod", folder="b")
    assert [info.name for info in available_brokers()] == ["acme"]


@pytest.mark.parametrize(
    ("core", "requirement", "fits"),
    [
        ("0.1.0", "cqrs-brokers-core<0.2,>=0.1", True),
        ("0.1.0", "cqrs-brokers-core", True),
        ("0.1.0", "cqrs_brokers.core >= 0.1, < 0.2", True),
        ("0.1.0", "CQRS-Brokers-Core[x] (>=0.1)", True),
        ("0.1.1rc1", "cqrs-brokers-core<0.2,>=0.1", True),
        ("0.2.0rc1", "cqrs-brokers-core<0.2,>=0.1", False),
        ("0.2.0.dev3", "cqrs-brokers-core>=0.2", False),
        ("0.2.0", "cqrs-brokers-core<0.2,>=0.1", False),
        ("0.0.9", "cqrs-brokers-core<0.2,>=0.1", False),
        ("0.1.0", "cqrs-brokers-core==0.1.*", True),
        ("0.1.0", "cqrs-brokers-core!=0.1.0", False),
        ("0.1.0", "cqrs-brokers-core>=9; extra == 'x'", True),
        ("0.1.0", "cqrs-brokers-core>=9; python_version >= '3'", False),
        ("0.1.0", "cqrs-brokers-corefoo>=9", True),
    ],
)
def test_the_version_of_core_is_checked_before_import(install, core, requirement, fits):
    """Both versions are named; pre-releases of core count; markers are obeyed."""
    info = install("cqrs-brokers-core", "0.1.0")
    (info / "METADATA").write_text(f"Name: cqrs-brokers-core\nVersion: {core}\n")
    install("cqrs-broker-acme", "1.5", GROUP + "acme = acme_mod", requires=(requirement,), modules={"acme_mod": "1/0"})
    (found,) = available_brokers()
    assert found.status == ("ready" if fits else "incompatible")
    if not fits:
        with pytest.raises(PluginLoadError) as caught:
            find_owner("acme")
        text = str(caught.value)
        assert text.startswith("acme:// is provided by cqrs-broker-acme 1.5, which cannot be used here: it needs ")
        assert f"and {core} is running; upgrade one of them" in text


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_the_short_cut_agrees_with_packaging(version, below, least):
    """The usual requirement is judged without importing `packaging`; never differently."""
    text = ".".join(map(str, version))
    specifier = f"<{below[0]}.{below[1]},>={least[0]}.{least[1]}"
    holds = plainly_holds(f"cqrs-brokers-core{specifier}", text)
    # What is no release of two numbers or more is left to `packaging`.
    assert holds == (len(version) > 1 and SpecifierSet(specifier).contains(text, prereleases=True))


@pytest.mark.parametrize("requirement", ["cqrs-brokers-core>=0.1", "cqrs-brokers-core", "cqrs-brokers-core<2,>=0.1"])
def test_the_short_cut_knows_one_form_of_requirement(requirement):
    """Every other form is left to `packaging`."""
    assert not plainly_holds(requirement, "0.1.0")


def test_two_claims_are_ambiguous_whatever_their_order(install):
    """Neither is imported; the error names both and the two ways out."""
    install("cqrs-broker-one", "1", GROUP + "acme = one_mod", modules={"one_mod": "1/0"})
    install("broker-two", "2", GROUP + "acme = two_mod", modules={"two_mod": "1/0"}, folder="before")
    assert set(statuses().values()) == {"ambiguous"}
    with pytest.raises(AmbiguousPluginError) as caught:
        find_owner("acme")
    assert str(caught.value) == (
        "acme:// is claimed by broker-two 2 and cqrs-broker-one 1: uninstall all but one, or choose with "
        "open_broker(url, distribution=…) or CQRS_BROKERS_PIN=acme=…"
    )
    assert find_owner("acme", "Broker_Two").value == "two_mod"


def test_a_reserved_scheme_belongs_to_its_distribution(install):
    """Another distribution would get the credentials; it is refused, whatever the order, unless pinned."""
    install("evil", "6", GROUP + "kafka = evil_mod\namqps = evil_mod")
    assert statuses() == {"kafka evil": "refused", "amqps evil": "refused"}
    with pytest.raises(
        PluginNotFoundError, match=r"kafka:// is reserved for cqrs-broker-kafka, which is not installed"
    ):
        find_owner("kafka")
    install("cqrs-broker-kafka", "0.1", GROUP + "kafka = good_mod")
    assert find_owner("kafka").value == "good_mod"
    assert find_owner("kafka", "evil").value == "evil_mod"
    assert statuses()["kafka cqrs-broker-kafka"] == "ready"


def test_pins(install, monkeypatch):
    """The environment pins by scheme; an argument beats it; the listing follows the environment."""
    install("one", "1", GROUP + "acme = one_mod")
    install("two", "2", GROUP + "acme = two_mod")
    monkeypatch.setenv("CQRS_BROKERS_PIN", "kafka=evil, acme = TWO")
    assert find_owner("acme").value == "two_mod"
    assert find_owner("acme", "one").value == "one_mod"
    assert statuses() == {"acme one": "refused", "acme two": "ready"}
    with pytest.raises(PluginNotFoundError) as caught:
        find_owner("acme", "three")
    assert str(caught.value) == (
        "acme:// is pinned to the distribution 'three', which is not installed or does not claim it; "
        "claimed by: one 1, two 2"
    )


def test_an_empty_distribution_is_no_missing_one(install, monkeypatch):
    """An argument that a variable left empty must not lift a pin, nor choose the owner of a reserved scheme."""
    install("one", "1", GROUP + "acme = one_mod")
    install("cqrs-broker-kafka", "1", GROUP + "kafka = kafka_mod")
    monkeypatch.setenv("CQRS_BROKERS_PIN", "acme=two")
    for scheme in ("acme", "kafka"):
        with pytest.raises(PluginNotFoundError, match="is pinned to the distribution '', which is not installed"):
            find_owner(scheme, "")


@pytest.mark.parametrize("pin", ["acme", "acme=", "=x", "acme=a b", "acme=one,acme=two", "Ac me=x"])
def test_a_malformed_pin_is_an_error(install, monkeypatch, pin):
    """A pin that is not understood must not be no pin."""
    monkeypatch.setenv("CQRS_BROKERS_PIN", pin)
    with pytest.raises(ConfigError, match="CQRS_BROKERS_PIN"):
        find_owner("acme")


def test_what_is_not_there_is_told_apart(install):
    """Not installed (with the hint that exists), misspelt, and unknown."""
    install("cqrs-broker-acme", entry_points=GROUP + "acme = acme_mod")
    for scheme, text in {
        "kafka": "kafka:// is not installed: pip install cqrs-broker-kafka",
        "amqps": "amqps:// is not installed: pip install cqrs-broker-amqp",
        "kafak": "unknown scheme 'kafak'; did you mean 'kafka'?",
        "acne": "unknown scheme 'acne'; did you mean 'acme'?",
        "vhost": "unknown scheme 'vhost'; installed: acme. A scheme comes with a distribution that has an entry point "
        "of that name in the group 'cqrs_brokers'",
        "nats": "unknown scheme 'nats'; installed: acme. A scheme comes with a distribution that has an entry point of "
        "that name in the group 'cqrs_brokers'",
    }.items():
        with pytest.raises(PluginNotFoundError) as caught:
            find_owner(scheme)
        assert str(caught.value) == text


def test_a_finder_that_raises_does_not_break_the_table(install, monkeypatch):
    """A broken import hook of somebody else costs at most what it found."""

    class Broken:
        def find_spec(self, *args, **keywords):
            return None

        def find_distributions(self, *args, **keywords):
            raise RuntimeError("broken")

    install("cqrs-broker-acme", entry_points=GROUP + "acme = acme_mod")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Broken()])
    installed.cache_clear()
    assert statuses() == {"acme cqrs-broker-acme": "ready"}


def test_listing_two_hundred_distributions_reads_one_file_of_each(install, monkeypatch):
    """And the metadata only of those that have our group, and of core."""
    for number in range(200):
        install(f"dist-{number}", entry_points="[console_scripts]\nx = y:z\n")
    install("cqrs-broker-acme", entry_points=GROUP + "acme = acme_mod", requires=("cqrs-brokers-core>=0.1,<0.2",))
    read: list[str] = []
    original = importlib_metadata.PathDistribution.read_text

    def counted(self, filename):
        read.append(str(filename))
        return original(self, filename)

    monkeypatch.setattr(importlib_metadata.PathDistribution, "read_text", counted)
    assert [info.name for info in available_brokers()] == ["acme"]
    installed_here = len(list(importlib_metadata.distributions()))
    assert read.count("entry_points.txt") == installed_here
    assert len(read) == installed_here + 2


def test_a_reserved_or_pinned_scheme_reads_its_own_distribution_and_core_only(install, monkeypatch):
    """Hundreds of other distributions cost nothing."""
    install("dist-1", entry_points="[console_scripts]\nx = y:z\n")
    install("cqrs-broker-acme", entry_points=GROUP + "acme = acme_mod")
    install("cqrs-broker-kafka", entry_points=GROUP + "kafka = kafka_mod")
    read: set[str] = set()
    original = importlib_metadata.PathDistribution.read_text

    def noted(self, filename):
        read.add(self._normalized_name)
        return original(self, filename)

    monkeypatch.setattr(importlib_metadata.PathDistribution, "read_text", noted)
    assert find_owner("kafka").value == "kafka_mod"
    assert read == {"cqrs_broker_kafka", "cqrs_brokers_core"}
    assert find_owner("acme", "CQRS.Broker_acme").value == "acme_mod"
    assert read == {"cqrs_broker_acme", "cqrs_broker_kafka", "cqrs_brokers_core"}


def test_the_owner_of_a_scheme_is_found_when_its_folder_has_another_name(install):
    """The name in METADATA counts, as in the listing."""
    info = install("cqrs-broker-kafka", entry_points=GROUP + "kafka = kafka_mod")
    info.rename(info.with_name("renamed-1.0.dist-info"))
    installed.cache_clear()
    assert find_owner("kafka").title == "cqrs-broker-kafka 1.0"


def test_a_finder_that_gives_more_than_was_asked_for_changes_nothing(install, monkeypatch):
    """It does not look at the name, and gives all that it knows."""

    class Careless:
        def find_spec(self, *args, **keywords):
            return None

        def find_distributions(self, context):
            return importlib_metadata.MetadataPathFinder.find_distributions(type(context)(path=context.path))

    install("another", entry_points=GROUP + "acme = acme_mod")
    install("cqrs-broker-kafka", entry_points=GROUP + "kafka = kafka_mod")
    listed = statuses()
    monkeypatch.setattr(sys, "meta_path", [Careless(), *sys.meta_path])
    installed.cache_clear()
    assert find_owner("kafka").title == "cqrs-broker-kafka 1.0"
    assert statuses() == listed


def test_importing_core_and_listing_import_no_plugin():
    """In a process of its own: neither a plugin nor a client library is there afterwards."""
    code = (
        "import sys, cqrs_brokers; cqrs_brokers.available_brokers();"
        "unwanted = ('cqrs_broker_', 'aiokafka', 'aio_pika', 'aiormq', 'packaging');"
        "print([module for module in sys.modules if module.startswith(unwanted)])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


def test_a_module_without_metadata_is_told_from_one_that_is_not_installed(install, monkeypatch):
    """Bundling tools leave `.dist-info` folders out; the error says how to bundle it, or to register the plugin."""
    install("something", modules={"cqrs_broker_kafka": "1/0", "cqrs_broker_acme": "1/0"})
    for scheme in ("kafka", "acme"):
        with pytest.raises(PluginLoadError) as caught:
            find_owner(scheme)
        assert str(caught.value) == (
            f"{scheme}:// is not registered: the module cqrs_broker_{scheme} is here, but the metadata of "
            f"cqrs-broker-{scheme} (its folder .dist-info) is not. Bundle the metadata too (PyInstaller: "
            f"--copy-metadata cqrs-broker-{scheme} --hidden-import cqrs_broker_{scheme}), or call "
            f"cqrs_brokers.hooks.register_plugin('{scheme}', cqrs_broker_{scheme})"
        )
        assert f"cqrs_broker_{scheme}" not in sys.modules
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(PluginNotFoundError, match="amqp:// is not in this frozen application: bundle cqrs-broker-amqp"):
        find_owner("amqp")
