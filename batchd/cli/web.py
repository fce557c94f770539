"""``batchd web``: the page."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util

from batchd import installation, log, processes
from batchd.cli.display import formatting
from batchd.config.sections import parted
from batchd.errors import NotPossibleError, UsageError
from batchd.log import escape

#: What the page needs beside what batchd needs.
_NEEDED = ("starlette", "uvicorn")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="where to listen (default: [web] listen, 127.0.0.1:8040)",
    )
    parser.epilog = (
        "It reads the store, with or without a daemon, and changes nothing, unless [web] orders lets browsers "
        "give orders. Ctrl-C ends it."
    )


def run(args: argparse.Namespace) -> int:
    """Show the page until stopped."""
    settings = formatting.settings(args.config)
    try:
        host, port = parted(args.listen) if args.listen else settings.web.address
    except ValueError:
        raise UsageError(f"{escape(args.listen)} is not HOST:PORT, as in 127.0.0.1:8040") from None
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise NotPossibleError(f"the page needs {' and '.join(missing)}: {installation.fix('web')}")
    from batchd.spool import safety
    from batchd.web.serving import serve  # optional, and no other command needs it

    safety.refuse_seen(settings)  # a token is made in the state directory
    processes.seal()
    processes.forget(settings.variables())
    log.hide(settings.hidden())
    log.configure(settings.log.level, settings.log.format)
    with contextlib.suppress(KeyboardInterrupt):
        serve(settings, host, port, functools.partial(print, flush=True))
    return 0
