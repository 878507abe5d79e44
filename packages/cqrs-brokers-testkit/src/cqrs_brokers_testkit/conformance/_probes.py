"""Programs that run in a fresh interpreter, for facts that can be seen only there.

Each program prints one line of JSON on success.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from cqrs_brokers_testkit.conformance._case import CaseFailed

CORE_IMPORT = """
import json, sys
import cqrs_brokers
cqrs_brokers.available_brokers()
print(json.dumps(sorted(sys.modules)))
"""

PLUGIN_IMPORT = """
import json, logging, sys, threading
import cqrs_brokers, cqrs_brokers.driver, cqrs_brokers.hooks, cqrs_brokers.options
seen = []
watched = {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen",
           "os.system", "os.fork", "os.posix_spawn", "urllib.Request"}
def hook(event, arguments):
    if event in watched:
        seen.append(event)
    elif event == "open" and isinstance(arguments[0], str) and any(m in str(arguments[1] or "") for m in "wax+"):
        if "__pycache__" not in arguments[0]:
            seen.append("open for writing")
sys.addaudithook(hook)
def levels():
    known = logging.getLogger().manager.loggerDict
    return {n: l.level for n, l in known.items() if isinstance(l, logging.Logger) and l.level} | {
        "root": logging.getLogger().level, "disabled below": logging.root.manager.disable}
before, threads = levels(), threading.active_count()
handlers = len(logging.getLogger().handlers)
plugin = cqrs_brokers.hooks.load_plugin(sys.argv[1], sys.argv[2] or None)
plugin.options_type()
after = levels()
if threading.active_count() > threads:
    seen.append("a thread")
if len(logging.getLogger().handlers) > handlers:
    seen.append("a handler of the root logger")
seen += [f"level of logger {name}" for name in after if after[name] != before.get(name, 0)]
print(json.dumps(seen))
"""

USE_AND_CLOSE = """
import asyncio, json, logging, sys
logging.basicConfig(level=logging.ERROR)  # a driver may log warnings; errors of asyncio and tracebacks are shown
from cqrs_brokers import Message, open_broker
url, topic, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
async def main():
    async with open_broker(url, **options) as broker:
        for n in range(5):
            await broker.send_message(Message("ConformanceEvent", topic, {"n": n}))
asyncio.run(main())
print(json.dumps("done"))
"""

NEVER_CLOSED = """
import asyncio, json, logging, sys
logging.basicConfig(level=logging.ERROR)
from cqrs_brokers import Message, open_broker
url, topic, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
async def main():
    broker = open_broker(url, **options)
    await broker.send_message(Message("ConformanceEvent", topic, {}))
asyncio.run(main())
print(json.dumps("done"))
"""

INTERRUPTED = """
import asyncio, json, logging, os, signal, sys
logging.basicConfig(level=logging.ERROR)
from cqrs_brokers import Message, open_broker
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job, and so its children, ignore it
url, topic, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
async def main():
    broker = open_broker(url, **options)
    await broker.send_message(Message("ConformanceEvent", topic, {}))
    asyncio.get_running_loop().call_later(0.3, os.kill, os.getpid(), signal.SIGINT)
    while True:
        await asyncio.gather(*(broker.send_message(Message("ConformanceEvent", topic, {})) for _ in range(100)))
asyncio.run(main())
"""

FORKED = """
import asyncio, json, os, sys, warnings
from cqrs_brokers import Message, open_broker
warnings.simplefilter("ignore")
url, topic, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
async def send(broker):
    await broker.send_message(Message("ConformanceEvent", topic, {}))
async def main():
    broker = open_broker(url, **options)
    await send(broker)
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            send(broker).send(None)
            text = "the send began"
        except BaseException as error:
            text = type(error).__name__
        os.write(writer, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(reader, 1000).decode()
    await send(broker)
    await broker.close()
    return told
print(json.dumps(asyncio.run(main())))
"""

CHANGES_OF_THE_PROCESS = """
import asyncio, gc, json, locale, logging, os, signal, socket, sys, threading, time, warnings
import cqrs_brokers.hooks
from cqrs_brokers import Message, open_broker
url, topic, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
umask = os.umask(0o77)
os.umask(umask)
WARNINGS = (UserWarning, DeprecationWarning, RuntimeWarning, ResourceWarning, FutureWarning, BytesWarning)
MODULES = "application", "asyncio"
def fits(pattern, text):  # Python's own filters have texts
    return pattern is None or (pattern == text if isinstance(pattern, str) else pattern.match(text))
def what_becomes_of(kind, name):  # a library may have filters for warnings of its own
    for action, message, category, module, _ in warnings.filters:
        if issubclass(kind, category) and fits(message, "a text of the application") and fits(module, name):
            return action
    return warnings.defaultaction
def state(loop):
    root = logging.getLogger()
    now = {f"the handler of {each.name}": signal.getsignal(each) for each in signal.valid_signals()
           if isinstance(each, signal.Signals)}
    now |= {f"the environment's {name}": value for name, value in os.environ.items()}
    now |= {
        "sys.excepthook": sys.excepthook, "sys.unraisablehook": sys.unraisablehook,
        "threading.excepthook": threading.excepthook, "sys.stdout": sys.stdout, "sys.stderr": sys.stderr,
        "what becomes of warnings": [what_becomes_of(kind, name) for kind in WARNINGS for name in MODULES],
        "warnings.showwarning": warnings.showwarning,
        "the default timeout of sockets": socket.getdefaulttimeout(), "socket.socket": socket.socket,
        "socket.getaddrinfo": socket.getaddrinfo, "the working directory": os.getcwd(),
        "the umask": os.umask(umask), "the locale": locale.setlocale(locale.LC_ALL), "the time zone": time.tzname,
        "garbage collection": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "the recursion limit": sys.getrecursionlimit(), "the switch interval": sys.getswitchinterval(),
        "the handlers of the root logger": list(root.handlers), "logging.disable": root.manager.disable,
        "the class of loggers": logging.getLoggerClass(), "logging.raiseExceptions": logging.raiseExceptions,
        "the factory of log records": logging.getLogRecordFactory(),
        "tracing": (sys.gettrace(), sys.getprofile(), threading.gettrace()),
        "the event loop policy": type(asyncio.get_event_loop_policy()),
        "the event loop's exception handler": loop.get_exception_handler(),
        "the event loop's task factory": loop.get_task_factory(), "the event loop's debug mode": loop.get_debug(),
        "the event loop's slow_callback_duration": loop.slow_callback_duration,
    }
    return now
async def main():
    loop = asyncio.get_running_loop()
    before, changed = state(loop), set()
    def compare():
        now = state(loop)
        missing = object()
        changed.update(n for n in before.keys() | now.keys() if before.get(n, missing) != now.get(n, missing))
    async with open_broker(url, **options) as broker:
        await broker.send_message(Message("ConformanceEvent", topic, {}))
        await broker.health()
        compare()
    compare()
    return sorted(changed)
print(json.dumps(asyncio.run(main())))
"""


class Probed(NamedTuple):
    """The result of a program.

    Attributes:
        answer: The JSON that the program printed, or None.
        code: The exit code.
        stderr: The text that the program printed to stderr.
        stdout: The text that the program printed to stdout before its answer.
    """

    answer: Any
    code: int
    stderr: str
    stdout: str = ""


_ENDS_WITHIN = 15.0
"""How many seconds a program may take. Only a busy machine needs most of these seconds."""


AT_START = dict(os.environ)
"""The environment before a driver of this process could change it."""


def probe(
    program: str, *arguments: str, flags: tuple[str, ...] = (), variables: Mapping[str, str] = os.environ
) -> Probed:
    """Runs a program with this interpreter, this `sys.path` and the environment `variables`.

    Raises:
        CaseFailed: The program did not end.
    """
    environment = {
        **variables,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    for name in ("PYTHONWARNINGS", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE"):
        environment.pop(name, None)
    try:
        done = subprocess.run(  # noqa: S603 - our own programs
            [sys.executable, *flags, "-c", program, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ENDS_WITHIN,
            check=False,
        )
    except subprocess.TimeoutExpired as expired:  # its text has the arguments in it, and they have the password
        wrote = (expired.stderr or b"").decode(errors="replace").strip()
        text = f"a process that does this did not end within {_ENDS_WITHIN:g} s; it wrote: {wrote[-300:] or 'nothing'}"
        raise CaseFailed(text) from None
    *printed, last = done.stdout.strip().splitlines() or [""]
    try:
        answer = json.loads(last)
    except ValueError:
        answer = None
    return Probed(answer, done.returncode, done.stderr.strip(), "\n".join(printed))
