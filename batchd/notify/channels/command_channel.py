"""A command of the operator's: it runs as batchd's user, outside of the sandbox.

The message comes as JSON on its standard input.
Nothing that it started outlives it, or its time limit, or the daemon.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from batchd.errors import DeliveryError, SandboxError
from batchd.masking import names_secret
from batchd.notify.channels.target import ReceiverTarget
from batchd.notify.format import NotificationV1
from batchd.sandbox import command_run, launch
from batchd.sandbox.child import ChildProcess

#: What is kept of its output.
_OUTPUT_BYTES = 1024
#: A shell's words for what cannot be run, and what is not there.
_NOT_RUN = {126, 127}
#: The message stands in variables too; a text of more bytes would not fit into one.
_MAX_VARIABLE_BYTES = 64 << 10


async def send(target: ReceiverTarget, message: NotificationV1) -> str:
    """Run it. Raises ``DeliveryError`` where it does not end with 0."""
    settings = target.settings
    argv = [os.fsencode(word) for word in settings.command]
    env = _environment(target, message)
    root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def start(stdin: int | None, output: int) -> ChildProcess:
        return launch.plain(root, env, argv, stdin=stdin, output=output)

    try:
        ran = await command_run.run(
            start,
            stdin=msgspec.json.encode(message),
            timeout_s=settings.timeout_s,
            limit=_OUTPUT_BYTES,
            masker=target.masker,
        )
    except SandboxError as error:
        raise DeliveryError(str(error)) from None
    finally:
        os.close(root)
    said = " ".join(ran.output.split())
    if ran.exit_code is None:
        raise DeliveryError(f"killed after {settings.timeout_s:g} s: {said}")
    outcome = f"exit code {ran.exit_code}" + (f": {said}" if said else "")
    if ran.exit_code:
        raise DeliveryError(outcome, final=ran.exit_code in _NOT_RUN)
    return outcome


def _environment(target: ReceiverTarget, message: NotificationV1) -> Mapping[str, str]:
    """Return batchd's own environment without secrets, and the message in short."""
    hidden = {name for name, value in os.environ.items() if target.masker.text(value) != value}
    kept = {k: v for k, v in os.environ.items() if k not in hidden and not names_secret(k)}
    first = message.events[0]
    return {
        **kept,
        "BATCHD_RECEIVER": target.name,
        "BATCHD_NOTIFICATION": message.id,
        "BATCHD_EVENT": ",".join(sorted({event.event for event in message.events})),
        "BATCHD_BATCH": first.batch.name if len(message.events) == 1 and first.batch else "",
        "BATCHD_SUBJECT": message.subject,
        "BATCHD_TEXT": message.text.encode()[:_MAX_VARIABLE_BYTES].decode(errors="ignore"),
    }
