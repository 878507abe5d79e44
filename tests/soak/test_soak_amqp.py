"""The soak of RabbitMQ in its short form: a minute of faults under load, then the queues against what was promised."""

import pytest
from soak.__main__ import make_plan, run

from tests.soak.goals import assert_goals

pytestmark = [pytest.mark.slow, pytest.mark.fault, pytest.mark.timeout(300)]

SEED = 5


def test_short_soak() -> None:
    """Under faults nothing is lost, doubled, wrongly "not delivered" or out of order, and receipts come back soon."""
    assert_goals(run("amqp", make_plan("amqp", seed=SEED, short=True), print))
