"""What the answers and errors of NATS mean: which of them prove that nothing was stored."""

import json
from typing import NamedTuple

from cqrs_brokers import exceptions as errors
from cqrs_brokers.tls import tls_error
from cqrs_brokers.url import Host
from nats.aio.msg import Msg

from .options import NatsOptions

__all__ = ["Ack", "ack_of", "connect_error"]

TOO_LARGE, REFUSED = 10054, 400
"""An error of JetStream, and the code of all errors that are found before anything is stored."""


class Ack(NamedTuple):
    """What JetStream answered: a sequence, or why there is none."""

    sequence: int | None
    error: errors.DeliveryError | None


def ack_of(msg: Msg) -> Ack | None:
    """Reads an answer. None: it is not JetStream's; some subscriber answered, which proves nothing."""
    if (msg.headers or {}).get("Status") == "503":
        text = "no stream takes this subject: make one, or set declare=stream with stream= and subjects="
        return Ack(None, errors.DestinationNotFoundError(text))
    try:
        answer = json.loads(msg.data)
        if "error" in answer:
            return Ack(None, _refusal(answer["error"]))
        if isinstance(answer["stream"], str) and type(answer["seq"]) is int:
            return Ack(answer["seq"], None)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return None


def _refusal(error: dict[str, object]) -> errors.DeliveryError:
    what = str(error.get("description", ""))[:200]
    if error.get("err_code") == TOO_LARGE:
        return errors.MessageTooLargeError("the stream takes no message of this size: see its max_msg_size")
    if error.get("code") != REFUSED and not what.startswith(("maximum", "insufficient")):
        return errors.DeliveryUnknownError(f"JetStream could not store it for sure ({what}): see the server's log")
    return errors.RejectedError(f"JetStream refused the message ({what}): see the limits of the stream")


def connect_error(error: Exception, host: Host, options: NatsOptions) -> errors.ConnectError:
    """Why there is no connection to that host."""
    text = str(error).lower()
    if isinstance(error, errors.ConnectError):
        return error
    if (failed := tls_error(error, str(host), options)) is not None:
        return failed
    if "authorization" in text or "authentication" in text or "credentials" in text:
        return errors.AuthenticationError(f"{host}: NATS does not accept user, token or credentials")
    return errors.UnreachableError(f"{host} does not answer ({type(error).__name__}): check host, port and server")
