"""Runs the cases against one harness, each with a time limit, and makes the report. It does not depend on pytest."""

from __future__ import annotations

import asyncio
import gc
import inspect
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from cqrs_brokers import Capabilities, available_brokers, open_broker
from cqrs_brokers_testkit.conformance import (
    _aftermath,
    _answers,
    _closing,
    _connecting,
    _contract,
    _crowd,
    _delivery,
    _faults,
    _footprint,
    _later,
    _lifecycle,
    _limits,
    _logins,
    _matching,
    _messages,
    _ordering,
    _processes,
    _queueing,
    _refusals,
    _static,
    _stuck,
    _tls,
    _trouble,
    _upkeep,
    _values,
    _variants,
)
from cqrs_brokers_testkit.conformance._case import CASES, Case, CaseFailed, Context
from cqrs_brokers_testkit.conformance._causes import FAULT, in_harness, named, reached
from cqrs_brokers_testkit.conformance._harness import Harness, NotApplicable, Unsupported
from cqrs_brokers_testkit.conformance._own_wire import OwnWire, has_own_wires, own_wire
from cqrs_brokers_testkit.conformance._report import NOT_CHOSEN, CaseResult, Report, Status
from cqrs_brokers_testkit.conformance._unhandled import Unhandled, asyncio_watched

Progress = Callable[[str], None]

_MODULES = (
    *(_static, _messages, _values, _refusals, _delivery, _matching, _connecting, _logins, _tls, _later, _limits),
    *(_answers, _variants, _stuck),
    *(_ordering, _lifecycle, _processes, _faults, _closing, _queueing, _upkeep, _trouble, _crowd, _aftermath),
    _footprint,
    _contract,
)
_SECTIONS = ("static", "messages", "refusals", "delivery", "ordering", "lifecycle", "faults", "contract")
for _section in _SECTIONS:  # in this order, whatever the order of the imports and the module
    for _module in _MODULES:
        for _id in [i for i, each in CASES.items() if each.function.__module__ == _module.__name__]:
            if _id.startswith(f"{_section}."):
                CASES[_id] = CASES.pop(_id)

_MOST_FAULTS = 6
"""After a method of the harness has failed so many times in a row, no more cases run. Each failure can cost seconds."""
_SIDE_BY_SIDE = 8  # cases that only wait
_MAKE_SERVERS = ("tls_destination", "tls_failures")
"""Methods of the harness that may take seconds. No case that runs beside others waits for them."""
_CLEAN_UP = 6.0  # seconds that a case may take, after its limit, to be cancelled and to close what it opened


def _to_stderr(text: str) -> None:
    """The default `progress`: prints each piece at once."""
    sys.stderr.write(text)
    sys.stderr.flush()


def run(harness: Harness, *, only: Iterable[str] = (), progress: Progress = _to_stderr) -> Report:
    """Runs every case that applies.

    Args:
        harness: The harness of the plugin.
        only: Run only the cases whose id is one of these, or starts with one of these and a dot. The report is then
            "incomplete", never a pass.
        progress: Called with the text of the progress, piece by piece.

    Raises:
        LookupError: `only` names no case.
        ValueError: The harness waives a case that cannot be waived, or one that does not exist.
    """
    with session(harness, progress=progress) as running:
        return running.run_all(tuple(only))


@contextmanager
def session(harness: Harness, *, progress: Progress = _to_stderr) -> Iterator[Session]:
    """Makes a session that runs single cases. Stops the harness at the end. `run` uses a session for all cases."""
    for case_id in harness.not_applicable:
        if case_id not in CASES:
            raise ValueError(f"not_applicable names {case_id!r}, and there is no such case")
        if not CASES[case_id].waivable:
            raise ValueError(f"{case_id} is mandatory and cannot be declared not applicable")
    with asyncio_watched() as watcher:
        try:
            yield Session(harness, progress, watcher)
        finally:
            harness.stop()


class Session:
    """A harness that runs cases."""

    def __init__(self, harness: Harness, progress: Progress, watcher: Unhandled) -> None:
        self.harness = harness
        self._progress = progress
        self._watcher = watcher
        self._started = False
        self._start_problem: str | None = None
        self._capabilities: Capabilities | None = None
        self._capabilities_problem = ""
        self._answers: dict[str, Any] = {}
        self._made: set[bytes] = set()
        self._lock: threading.Lock | None = None  # of cases that run at the same time, for what the harness does
        self._faults = _HarnessFaults()
        self._results: dict[str, CaseResult] | None = None
        """Of cases that ran beside others and were not yet asked for. None: such cases have not run."""
        self.chosen: Collection[str] = CASES  # what runs in this session: the cases that may run beside one of them
        self.report = self._empty_report()

    def run_all(self, only: tuple[str, ...]) -> Report:
        """Runs the chosen cases in order. An empty choice means all cases."""
        unknown = [name for name in only if not any(_chosen(case_id, (name,)) for case_id in CASES)]
        if unknown:
            near = [case_id for name in unknown for case_id in CASES if name in case_id]
            near = near or [case_id for name in unknown for case_id in CASES if name.rpartition(".")[2] in case_id]
            hint = f"; did you mean {' or '.join(near[:3])}?" if near else "; --list names them"
            raise LookupError(f"no case or section is called {', '.join(unknown)}{hint}")
        self.report.filtered = bool(only)
        self.chosen = [case_id for case_id in CASES if not only or _chosen(case_id, only)]
        for number, case in enumerate(CASES.values(), 1):
            if case.id not in self.chosen:
                self._add(_result(case, "not run", NOT_CHOSEN))
                continue
            self._progress(f"[{number:3}/{len(CASES)}] {case.id} ")
            result = self.run_case(case)
            seconds = f" ({result.seconds:.1f} s)" if result.seconds >= 0.05 else ""
            self._progress(f"{result.status}{seconds}{': ' + result.reason if result.reason else ''}\n")
        slowest = ", ".join(f"{each.id} {each.seconds:.1f} s" for each in self.report.slowest(10))
        self._progress(f"slowest: {slowest}\n")
        self._progress(f"{self.report.scheme}:// {self.report.verdict}: {self.report.summary}\n")
        return self.report

    def run_case(self, case: Case) -> CaseResult:
        """Runs one case, unless it cannot be run or does not apply. If the case mostly waits (`Case.waits`), the other
        chosen cases of this kind run at the same time."""
        if case.waits and self._results is None:
            self._results = self._run_side_by_side([CASES[each] for each in self.chosen if CASES[each].waits])
        result = (self._results or {}).pop(case.id, None)
        return self._add(result or self._result_of(case))

    def _run_side_by_side(self, cases: list[Case]) -> dict[str, CaseResult]:
        """Runs cases at the same time. Leaves out a case that needs the proxy and cannot have a proxy of its own."""
        if self._start() is not None:
            return {}
        self._declared()
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:  # a harness may use asyncio: it is called in other threads
            free = [case for case in cases if "proxy" not in case.needs]
            if len(cases) < 2 or (free != cases and not pool.submit(has_own_wires, self.harness).result()):
                cases = free
            for need in _MAKE_SERVERS if len(cases) > 1 else ():
                if any(need in case.needs for case in cases) and self.harness.lacks(need) is None:
                    with suppress(Exception):  # a case calls the method again, and says what is wrong
                        self._answers[need] = pool.submit(getattr(self.harness, need)).result()
            self._lock = threading.Lock()
            try:
                return {result.id: result for result in pool.map(self._result_beside_others, cases)}
            finally:
                self._lock = None

    def _result_beside_others(self, case: Case) -> CaseResult:
        assert self._lock is not None
        with ExitStack() as stack:
            wire = None
            if "proxy" in case.needs:
                with self._lock:
                    wire = stack.enter_context(own_wire(self.harness))
            return self._result_of(case, wire)

    def _result_of(self, case: Case, wire: OwnWire | None = None) -> CaseResult:
        if case.kind != "static" and self._faults.most >= _MOST_FAULTS:
            return _result(case, "not run", f"the harness failed {_MOST_FAULTS} times in a row: {self._faults.text}")
        result = self._judge(case, wire) or self._execute(case, wire)
        self._faults.note(result)
        return result

    def _add(self, result: CaseResult) -> CaseResult:
        self.report.cases.append(result)
        return result

    # -- what applies -------------------------------------------------------------------------------------------------

    def _judge(self, case: Case, wire: OwnWire | None) -> CaseResult | None:
        """Returns the result of a case that must not be executed. None: the case must be executed."""
        for waived in (case.id, case.like):
            if waived is not None and waived in self.harness.not_applicable:
                return _result(case, "not applicable", self.harness.not_applicable[waived])
        if case.kind != "static":
            problem = self._start()
            if problem:
                return _result(case, "not run", problem)
        capabilities = self._declared()
        if capabilities is None:
            return None if case.kind == "static" else _result(case, "not run", self._capabilities_problem)
        undeclared = case.capability is not None and not getattr(capabilities, case.capability)
        if case.without is not None and getattr(capabilities, case.without):
            return _result(case, "not applicable", f"the driver declares {case.without}")
        for need in case.needs if case.kind != "static" else ():
            lack = self.harness.lacks(need)
            if lack is not None and lack.startswith("n/a: "):
                return _result(case, "not applicable", lack.removeprefix("n/a: "))
            if lack is not None and undeclared:
                return _result(case, "not applicable", f"the driver does not declare {case.capability}")
            if lack is not None:
                return _result(case, "not run", lack)
        if undeclared:
            if self._execute(case, wire).status == "passed":
                self.report.notes.append(f"{case.id} passes although the driver does not declare {case.capability}")
            return _result(case, "not applicable", f"the driver does not declare {case.capability}")
        return None

    def _start(self) -> str | None:
        if not self._started:
            self._started = True
            try:
                self.harness.start()
            except Exception as error:
                self._start_problem = f"the harness did not start: {in_harness(error, self.harness) or named(error)}"
            if self._start_problem is None and "://" not in self.harness.url:
                self._start_problem = "no harness: give a config string to run the live cases"
            if self._start_problem is None:
                self.report.server = self.harness.server_version()
        return self._start_problem

    def _declared(self) -> Capabilities | None:
        if self._capabilities is None:
            try:
                broker = open_broker(
                    _static.openable_url(self.harness), distribution=self.harness.distribution, **self.harness.options
                )
                self._capabilities = broker.capabilities
                self.report.capabilities = self._capabilities.to_dict()
            except Exception as error:
                self._capabilities_problem = f"the broker cannot be opened: {type(error).__name__}: {error}"
        return self._capabilities

    # -- running ------------------------------------------------------------------------------------------------------

    def _execute(self, case: Case, wire: OwnWire | None) -> CaseResult:
        """Runs a case in a thread of its own. The thread is abandoned if the case does not end."""
        ended: list[BaseException | None] = []
        capabilities = self._capabilities or Capabilities()
        url = self.harness.url if wire is None else wire.url
        context = Context(
            *(self.harness, url, capabilities, self._answers),
            made=self._made,
            lock=self._lock or threading.Lock(),
            own_proxy=None if wire is None else wire.proxy,
        )
        thread = threading.Thread(
            target=lambda: ended.append(_outcome(case, context)),
            name=f"conformance {case.id}",
            daemon=True,
        )
        began = time.monotonic()
        with self._watcher.watching(thread) as complaints:
            thread.start()
            thread.join(case.limit + _CLEAN_UP)
        seconds = round(time.monotonic() - began, 2)
        if not ended:
            stack = traceback.extract_stack(sys._current_frames()[thread.ident or 0])
            at = f", in {Path(stack[-1].filename).name}:{stack[-1].lineno}: {stack[-1].line}" if stack else ""
            detail = "".join(traceback.format_list(stack))
            step = f"; the last step of the harness was {context.step}()" if context.step.isidentifier() else ""
            return _result(case, "failed", f"still running after {seconds:.0f} s{at}{step}", seconds, detail)
        error = ended[0]
        breaches = [*context.breaches, *complaints]
        if isinstance(error, Unsupported):
            return _result(case, "not run", str(error) or "the harness does not offer what it needs", seconds)
        if isinstance(error, NotApplicable):
            return _result(case, "not applicable", str(error), seconds)
        if error is None and not breaches:
            return _result(case, "passed", "", seconds)
        texts = []
        if error is not None:
            told = str(error) if isinstance(error, CaseFailed) else in_harness(error, self.harness) or named(error)
            texts.append(told)
        if breaches:
            texts.append(f"the driver broke its contract {len(breaches)} times: {'; '.join(breaches[:3])}")
        detail = "" if error is None else "".join(traceback.format_exception(error))
        return _result(case, "failed", "; ".join(texts), seconds, detail)

    def _empty_report(self) -> Report:
        scheme = self.harness.url.partition("://")[0]
        owners = [info for info in available_brokers() if info.name == scheme and info.status == "ready"]
        plugin = f"{owners[0].distribution} {owners[0].version}" if owners else "a plugin without distribution"
        return Report(
            suite=metadata.version("cqrs-brokers-testkit"),
            core=metadata.version("cqrs-brokers-core"),
            python=platform.python_version(),
            scheme=scheme,
            plugin=plugin,
            capabilities={},
        )


def _outcome(case: Case, context: Context) -> BaseException | None:
    """Runs the case, and returns its failure. None: the case passed."""
    try:
        if inspect.iscoroutinefunction(case.function):
            with asyncio.Runner(loop_factory=context.watched_loop) as runner:
                runner.run(_bounded(case, context))
        else:
            case.function(context)
    except BaseException as error:  # in a thread of ours: nothing may leave it
        return error
    finally:
        if context.turns is not None:
            context.breaches += context.turns.found
        gc.collect()  # now, not in a later case, asyncio finds what nobody looked at
    return None


async def _bounded(case: Case, context: Context) -> None:
    try:
        async with asyncio.timeout(case.limit) as timeout:
            running = case.function(context)
            if running is not None:
                await running
    except TimeoutError as error:
        if timeout.expired():
            raise CaseFailed(f"did not end within {case.limit:g} s{reached(error)}") from error
        raise
    finally:
        await context.clean_up()


def _result(case: Case, status: Status, reason: str = "", seconds: float = 0.0, detail: str = "") -> CaseResult:
    return CaseResult(case.id, case.kind, case.profile, status, reason, seconds, detail)


def _chosen(case_id: str, only: tuple[str, ...]) -> bool:
    return any(case_id == name or case_id.startswith(f"{name}.") for name in only)


class _HarnessFaults:
    """Counts how many cases in a row failed because of the same method of the harness."""

    def __init__(self) -> None:
        self.most = 0
        self.text = ""

    def note(self, result: CaseResult) -> None:
        """Called when a case has ended."""
        if result.status in ("passed", "failed"):
            method = result.reason.partition("(): ")[0] if result.reason.startswith(FAULT) else ""
            self.most = self.most + 1 if method and self.text.startswith(method) else int(bool(method))
            self.text = result.reason if method else ""
