"""``batchd init``: makes a spool, and says what comes next."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from batchd import config, pricing
from batchd.config import trust
from batchd.config.providers import PRESETS
from batchd.config.sections import AgentSection, PoolSection
from batchd.errors import BatchdError, ConfigError, NotPossibleError, UsageError
from batchd.log import escape
from batchd.spool import new_spool
from batchd.spool.new_spool import NewSpool

_NOTHING = "nothing was made"
_MAX_AGENTS = 1000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "directory", nargs="?", metavar="DIR", help="where (else here); it may be new"
    )
    parser.add_argument(
        "--model", metavar="PROVIDER/MODEL", help=f"what does the work ({AgentSection().model})"
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="the address of a provider that batchd does not know"
    )
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--key-env", metavar="NAME", help="the variable that holds the provider's key")
    key.add_argument("--key-file", metavar="FILE", help="the file that holds the provider's key")
    key.add_argument("--no-key", action="store_true", help="the server needs no key")
    parser.add_argument(
        "--agents", type=int, metavar="N", help=f"tasks at a time ({PoolSection().processes})"
    )
    parser.add_argument(
        "--systemd",
        action="store_true",
        help="make batchd a service: show what that takes, and do it after a yes",
    )
    parser.add_argument(
        "--user",
        action="store_true",
        help="with --systemd: a service of your own, for the spool in DIR",
    )
    parser.add_argument(
        "--every",
        nargs=2,
        metavar=("WHEN", "FILE"),
        help="with --systemd: have a timer drop FILE at '02:00', 'Mon 02:00', or what else OnCalendar= takes",
    )
    parser.add_argument("--remove", action="store_true", help="with --systemd: undo exactly that")
    parser.add_argument("--yes", action="store_true", help="with --systemd: do not ask")
    parser.epilog = (
        "It overwrites nothing, puts the directory on the list of trusted ones, as `batchd trust` does, "
        "and says what comes next. Its config.toml can be changed later: model, key and number of "
        "tasks stand at its top."
    )


def run(args: argparse.Namespace) -> int:
    """Make it; nothing is made where anything is wrong."""
    if args.config:
        raise UsageError(f"a spool's configuration is {trust.CONFIG} in DIR: leave --config out")
    if args.directory == "":  # a variable that is not set, say
        raise UsageError("DIR is empty: name a directory, or leave it out for this one")
    # No link is followed: what is shown is what was named.
    directory = Path(os.path.abspath(args.directory or "."))
    if args.systemd:
        from batchd.cli import systemd  # no other use of this command needs it

        def serviced(place: Path) -> NewSpool:
            # The system's service has no user's variables.
            if args.key_env is not None:
                raise UsageError(
                    "a service of the system has no variables of yours: give a --key-file"
                )
            return _wanted(args, place)

        return systemd.run(args, directory, serviced)
    if args.user or args.every or args.remove or args.yes:
        raise UsageError("--user, --every, --remove and --yes go with --systemd")
    if not str(directory).isprintable():
        raise UsageError(
            f"{escape(str(directory))}: the path of a spool has printable characters alone"
        )
    new_spool.refuse(directory)
    wanted = _wanted(args, directory)
    _refuse(wanted)
    former = new_spool.former(directory)
    new_spool.make(wanted)
    _trust(wanted)
    print(*map(escape, _made(wanted, former=former)), sep="\n")
    return 0


def _wanted(args: argparse.Namespace, directory: Path) -> NewSpool:
    """Return what is wanted: as given, else as usual. Raises ``UsageError``."""
    model = args.model or AgentSection().model
    provider, _, name = model.partition("/")
    if not (provider and name):
        seller = next((each for each in PRESETS if model in pricing.names(each)), "")
        like = f"{seller}/{model}" if seller else AgentSection().model
        raise UsageError(f"--model {escape(model)}: write PROVIDER/MODEL, such as {like}")
    if args.base_url and not args.model:
        raise UsageError("--base-url goes with --model PROVIDER/MODEL")
    if not args.base_url and provider not in PRESETS:
        known = ", ".join(PRESETS)
        raise UsageError(f"{escape(provider)} is none of {known}: give its --base-url too")
    agents = PoolSection().processes if args.agents is None else args.agents
    if not 1 <= agents <= _MAX_AGENTS:
        raise UsageError(f"--agents {agents}: it is a number from 1 to {_MAX_AGENTS:,}")
    key_env, key_file = args.key_env, args.key_file or ""
    if key_env is None:
        of_preset = str(PRESETS.get(provider, {}).get("api_key_env", ""))
        key_env = "" if args.no_key or key_file else of_preset
    if key_file and not key_file.startswith("~/"):  # one of the home's own stays that
        key_file = os.path.abspath(key_file)  # no link is followed
    return NewSpool(
        directory=directory,
        model=model,
        base_url=args.base_url or "",
        key_env=key_env,
        key_file=key_file,
        agents=agents,
    )


def _refuse(wanted: NewSpool) -> None:
    """Refuse what would not work, before anything is made. Raises ``BatchdError``."""
    from batchd.spool import safety  # loads the sandbox; not for wrong arguments

    try:
        # Variables of this session are none of the spool's.
        settings = config.load(
            wanted.config, {"HOME": os.environ.get("HOME", "")}, draft=wanted.text()
        )
        safety.refuse_seen(settings)
    except ConfigError as error:
        raise UsageError(f"{_NOTHING}: {'; '.join(map(str, error.problems))}") from None
    grave = next((found for found in safety.exposures(settings) if found.grave), None)
    there = next(p for p in (wanted.directory, *wanted.directory.parents) if p.is_dir())
    if problem := grave or trust.doubt(there, there.stat(), trust.ours()):
        raise NotPossibleError(f"{_NOTHING}: {problem}")


def _trust(wanted: NewSpool) -> None:
    """Trust the new directory, so that its configuration counts.

    Raises ``NotPossibleError`` where it does not, with what to do.
    """
    try:
        trust.add(str(wanted.directory), os.environ)
        trust.trusted(wanted.config, os.environ)
    except (BatchdError, OSError) as error:
        raise NotPossibleError(
            f"the spool is made, and its configuration does not count by itself yet: {error}\n"
            f"  batchd --config {shlex.quote(str(wanted.config))} …   names it"
        ) from None


def _made(wanted: NewSpool, *, former: bool) -> list[str]:
    """Return what was made, and what comes next."""
    key = wanted.key_file or wanted.key_env
    has = "no key" if not key else f"key: {key}"
    lines = [
        f"A spool: {wanted.directory}",
        f"  config.toml    {wanted.model}; {has};",
        f"                 {wanted.agents:,} at a time. Used when you run batchd in this directory.",
        "  inbox/         where task files are dropped",
        "  outbox/        where results appear",
        f"  {new_spool.SAMPLE}    a task file to try it with",
    ]
    if former:
        lines += ["It goes on with the store that an earlier version left there in .batchd/."]
    lines += [
        "Another model, key or number: `batchd init --help`, or change config.toml.",
        "",
        "Next:",
    ]
    if os.environ.get(trust.VARIABLE):
        lines += [f"  unset {trust.VARIABLE}    # it goes before what lies in a directory"]
    if wanted.directory != Path.cwd():
        lines += [f"  cd {shlex.quote(str(wanted.directory))}"]
    if wanted.key_file and not Path(wanted.key_file).expanduser().exists():
        lines += [f"  put the key into {wanted.key_file} (chmod 600)"]
    elif wanted.key_env and not os.environ.get(wanted.key_env):
        lines += [f"  export {wanted.key_env}=…"]
    steps = {
        "batchd check": "what would fail, and the fix",
        "batchd serve": "the daemon, in a terminal of its own",
        f"batchd submit --wait {new_spool.SAMPLE}": "drops the sample, and shows how it goes",
    }
    return lines + [f"  {command:<36}{what}" for command, what in steps.items()]
