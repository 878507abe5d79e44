"""Keys go to the partitions where Kafka's own clients put them."""

from aiokafka.partitioner import DefaultPartitioner
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from hypothesis import given
from hypothesis import strategies as st

from cqrs_broker_kafka._partitioning import murmur2, partition_for


@given(st.binary(max_size=200))
def test_the_hash_is_aiokafkas(data: bytes) -> None:
    """Our murmur2 gives the same number for any bytes."""
    assert murmur2(data) == murmur2_of_aiokafka(data) & 0xFFFFFFFF


@given(st.binary(min_size=1, max_size=60), st.integers(1, 300))
def test_the_partition_is_aiokafkas(key: bytes, partitions: int) -> None:
    """A key has the partition that aiokafka's default partitioner gives it."""
    numbers = list(range(partitions))
    assert partition_for(key, partitions) == DefaultPartitioner()(key, numbers, numbers)


def test_known_hashes_of_the_java_client() -> None:
    """The vectors of Kafka's own UtilsTest.testMurmur2."""
    vectors = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    for data, expected in vectors.items():
        assert murmur2(data) == expected & 0xFFFFFFFF
