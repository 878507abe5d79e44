"""Relays and hooks that are wrong in one way, and the test that must catch each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A change of the source.

    Attributes:
        name: What is wrong with it.
        module: The file, within the package.
        old: The text that is replaced; it must be there once.
        new: What stands there instead.
        test: The test that must fail.
    """

    name: str
    module: str
    old: str
    new: str
    test: str


MUTANTS = [
    Mutant(
        "claims by id",
        "_relay/worker.py",
        "        rows = sorted([ClaimedRow._make(row) for row in (*due, *ready)], key=_NUMBER)\n",
        '        last = getattr(self, "_last", 0)\n'
        "        rows = [ClaimedRow._make(row) for row in sorted([*due, *ready], key=_NUMBER) if row.id > last]\n"
        "        self._last = max([last, *(row.id for row in rows)])\n",
        "test_relay.py::test_a_row_that_commits_late_is_found[asyncpg]",
    ),
    Mutant(
        "forgets the token",
        "_relay/outcomes.py",
        "[o for o in others if tokens.get(o.item.partition) == o.item.token]",
        "others",
        "test_leases.py::test_a_lease_that_was_lost_fences_every_mark_but_receipts[asyncpg]",
    ),
    Mutant(
        "marks before the receipt",
        "_relay/worker.py",
        "                outcomes = await self._delivered(items)\n",
        "                now = [(item.message.message_id, item.message.topic) for item in items]\n"
        "                for item, which in zip(items, now):\n"
        "                    self._outcomes.append(Outcome(item, Verdict.SENT, Receipt(*which, 'x')))\n"
        "                self._to_mark.set()\n"
        "                outcomes = await self._delivered(items)\n",
        "test_relay.py::test_no_row_is_marked_before_its_receipt[asyncpg]",
    ),
    Mutant(
        "lets a failed row fall behind",
        "_relay/statements.py",
        "_holding_states = (State.WAITING,) if continue_past_parked else (State.WAITING, State.PARKED)",
        "_holding_states = (State.PARKED,)",
        "test_relay.py::test_a_row_that_fails_holds_its_key_up_and_nobody_else[asyncpg]",
    ),
    Mutant(
        "treats unknown as sent",
        "_relay/outcomes.py",
        "State.PARKED if outcome.verdict is Verdict.PARKED else State.WAITING",
        "State.PARKED if outcome.verdict is Verdict.PARKED else "
        "State.SENT if outcome.verdict is Verdict.UNKNOWN else State.WAITING",
        "test_relay.py::test_unknown_is_sent_again_under_the_same_id_and_counted[asyncpg]",
    ),
    Mutant(
        "does not count what is unknown",
        "_relay/statements.py",
        "attempts_unknown = attempts_unknown + :unknown,",
        "attempts_unknown = attempts_unknown + 0 * :unknown,",
        "test_relay.py::test_unknown_is_sent_again_under_the_same_id_and_counted[aiosqlite]",
    ),
    Mutant(
        "does not count what a dead relay may have sent",
        "_relay/leases.py",
        "        if not position:\n",
        "        if position:\n",
        "test_leases.py::test_who_takes_over_counts_what_may_have_been_sent[asyncpg]",
    ),
    Mutant(
        "sends a key's rows together",
        "relay.py",
        "                pipeline=self._pipeline,",
        "                pipeline=True,",
        "test_relay.py::test_every_row_arrives_in_order_and_has_its_receipt[asyncpg]",
    ),
    Mutant(
        "keeps its leases when it stops",
        "_relay/leases.py",
        "        await self._release(list(self.tokens), in_use)\n"
        '        await self._store.change((f"DELETE',
        '        await self._store.change((f"DELETE',
        "test_leases.py::test_stopping_gives_the_partitions_back_at_once[asyncpg]",
    ),
    Mutant(
        "gives back partitions by what was in flight before it asked for its leases",
        "_relay/worker.py",
        "        await self._leases.step(self.in_use)\n",
        "        before = self.in_use()\n        await self._leases.step(lambda: before)\n",
        "test_leases.py::test_a_claim_while_the_relay_asks_for_its_leases[asyncpg]",
    ),
    Mutant(
        "takes rows of a key while its failure is not marked",
        "_relay/keys.py",
        "return lane not in self._failed and lane not in self._settling",
        "return True",
        "test_keys.py::test_a_claim_that_read_before_a_failure_was_marked_brings_nothing_of_its_key",
    ),
    Mutant(
        "forgets which claim began before the mark",
        "_relay/keys.py",
        "        if self._claiming:\n            self._settling.add(lane)\n",
        "        pass\n",
        "test_keys.py::test_a_claim_that_read_before_a_failure_was_marked_brings_nothing_of_its_key",
    ),
    Mutant(
        "sends all topics",
        "_relay/statements.py",
        "        self._topics = None if topics is None else {",
        "        self._topics = None if True else {",
        "test_topics.py::test_relays_for_two_brokers",
    ),
    Mutant(
        "marks rows while the broker is gone",
        "_relay/outcomes.py",
        "        return Verdict.UNTOUCHED\n",
        "        return Verdict.RETRY\n",
        "test_relay.py::test_while_the_broker_is_gone_no_row_is_touched[asyncpg]",
    ),
    Mutant(
        "tries every row of a refused topic",
        "_relay/outcomes.py",
        "        return Verdict.REFUSED\n",
        "        return Verdict.RETRY\n",
        "test_relay.py::test_a_refused_topic_waits_as_a_whole_and_comes_back[asyncpg]",
    ),
    Mutant(
        "the hook inserts before the flush",
        "hook.py",
        "    if of_session:\n        session.flush()\n",
        "",
        "test_adding.py::test_an_aggregate_that_is_dirty_at_commit_is_written_before_the_message",
    ),
    Mutant(
        "the hook writes at a savepoint's release",
        "hook.py",
        "        session.info[_BEGUN] = session.info.get(_BEGUN, 0) + 1\n        return\n",
        "        pass\n",
        "test_adding.py::test_the_release_of_a_savepoint_writes_nothing",
    ),
    Mutant(
        "rows outlive their savepoint",
        "hook.py",
        "if transaction not in savepoints]",
        "]",
        "test_adding.py::test_rows_of_a_savepoint_that_is_rolled_back_go_with_it[asyncpg]",
    ),
    Mutant(
        "ours need not be the last listener",
        "hook.py",
        "        return last is _before_commit",
        "        return True",
        "test_adding.py::test_a_listener_that_was_registered_after_ours_changes_something",
    ),
    Mutant(
        "forgets that the commit has begun",
        "hook.py",
        "        if _COMMITTING in session.info:",
        "        if False:",
        "test_session_events.py::test_a_message_that_a_listener_of_a_mapper_adds",
    ),
    Mutant(
        "the place begins anew with every statement",
        "outbox.py",
        "        place = self._places.get(transaction, 0)\n",
        "        place = 0\n",
        "test_place.py::test_the_place_goes_on_through_every_way_to_write[asyncpg]",
    ),
    Mutant(
        "claims its topics from all rows in their order",
        "_relay/statements.py",
        '        if self._topics is None:\n            return self.ready(columns, "", conditions, limit)',
        "        if self._topics is not None:\n"
        "            conditions += f\" AND o.topic IN ({', '.join(':' + name for name in self._topics)})\"\n"
        '        if True:\n            return self.ready(columns, "", conditions, limit)',
        "test_topics.py::test_a_claim_of_topics_does_not_look_at_other_relays_rows[asyncpg-topics1]",
    ),
    Mutant(
        "loses the writer's trace context",
        "rows.py",
        "            if row.trace:\n",
        "            if False:\n",
        "test_observing.py::test_the_writer_s_trace_context_goes_to_the_broker[asyncpg]",
    ),
    Mutant(
        "tells as parked what was fenced",
        "_relay/outcomes.py",
        "return Marked(sum(o.verdict is not Verdict.HELD for o in others if o not in current), failures)",
        "return Marked(sum(o.verdict is not Verdict.HELD for o in others if o not in current), "
        "[(o, State.PARKED) for o in others])",
        "test_observing.py::test_refused_marks_are_told_as_fenced_and_not_as_parked",
    ),
    Mutant(
        "purges what is young",
        "_relay/statements.py",
        "AND sent_at < {self.now} - :keep",
        "AND sent_at < {self.now} + :keep",
        "test_observing.py::test_a_relay_purges_what_was_kept_long_enough[asyncpg]",
    ),
    Mutant(
        "reads all that waits for each claim",
        "_relay/statements.py",
        " LIMIT (SELECT {int(limit)})",
        " LIMIT {int(limit)}",
        "test_cost.py::test_a_claim_and_a_mark_read_what_they_take[16-empty]",
    ),
    Mutant(
        "marks each receipt by itself",
        "_relay/worker.py",
        "            await _set_within(self._mark_now, MARK_STEP)\n",
        "            await asyncio.sleep(0)\n",
        "test_cost.py::test_receipts_of_a_busy_key_are_marked_together",
    ),
    Mutant(
        "sends the topics in one call",
        "_relay/calls.py",
        "calls.setdefault((topic, item.lane) if topic in slow else topic, [])",
        'calls.setdefault("", [])',
        "test_slow.py::test_a_topic_without_answers_holds_up_no_other[asyncpg-False]",
    ),
    Mutant(
        "gives a stuck topic all its room",
        "_relay/worker.py",
        "        return sorted(full | self._calls.paused())\n",
        "        return sorted(self._calls.paused())\n",
        "test_slow.py::test_many_rows_of_a_topic_without_answers_leave_room_for_others[asyncpg]",
    ),
    Mutant(
        "stops for a topic alone",
        "_relay/worker.py",
        "if broker_down is not None and others_go_on:",
        "if False:",
        "test_slow.py::test_a_topic_whose_node_is_away_stops_no_other",
    ),
]
