"""The soak of Kafka in its short form: a minute of faults under load, then the topic against what was promised."""

import pytest
from soak.__main__ import make_plan, run

from tests.soak.goals import assert_goals

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(300)]

SEED = 6


def test_short_soak() -> None:
    """Under faults nothing is lost, doubled, wrongly "not delivered" or out of order, and receipts come back soon."""
    assert_goals(run("kafka", make_plan("kafka", seed=SEED, short=True), print))
