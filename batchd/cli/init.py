"""``batchd init``: makes a spool, and says what comes next."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from functools import partial
from pathlib import Path

from batchd import config, pricing
from batchd.config import finding, trust_lists
from batchd.config.presets import PRESETS
from batchd.config.sections import AgentSection, PoolSection
from batchd.errors import BatchdError, ConfigError, NotPossibleError, UsageError
from batchd.log import escape
from batchd.spool import new_spool, permissions
from batchd.spool.new_spool import NewSpool

#: What stands for no key.
_NONE = "none"
_MAX_AGENTS = 1000
_MODEL = re.compile(r"[^\s/]+/\S+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "directory", nargs="?", metavar="DIR", help="where (else here); it may be new"
    )
    parser.add_argument(
        "--model", metavar="PROVIDER/MODEL", help=f"what does the work ({AgentSection().model})"
    )
    parser.add_argument(
        "--base-url", metavar="URL", help="where a provider is that batchd does not know"
    )
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--key-env", metavar="NAME", help="the variable that holds its key")
    key.add_argument("--key-file", metavar="FILE", help="the file that holds its key")
    key.add_argument("--no-key", action="store_true", help="it is a server without keys")
    parser.add_argument(
        "--agents", type=int, metavar="N", help=f"tasks at a time ({PoolSection().processes})"
    )
    parser.add_argument(
        "--systemd",
        action="store_true",
        help="make batchd a service: show what that takes, and do it after a yes",
    )
    parser.add_argument("--user", action="store_true", help="… of your own, for the spool in DIR")
    parser.add_argument("--remove", action="store_true", help="… no longer: undo exactly that")
    parser.add_argument("--yes", action="store_true", help="… without asking")
    parser.epilog = (
        "On a terminal it asks for what is not given: the model, where its key comes from, how many "
        "tasks at a time; elsewhere it asks nothing. It overwrites nothing, puts the directory on the "
        "list of trusted ones, as `batchd trust` does, and says what comes next."
    )


def run(args: argparse.Namespace) -> int:
    """Make it; nothing is made where anything is wrong."""
    if args.config:
        raise UsageError(
            f"a spool's configuration is {trust_lists.CONFIG} in DIR: leave --config out"
        )
    # No link is followed: what is shown is what was named.
    directory = Path(os.path.abspath(args.directory or "."))  # noqa: PTH100
    if args.systemd:
        from batchd.cli import systemd  # noqa: PLC0415 (no other use of this command needs it)

        return systemd.run(args, directory, partial(_serviced, args))
    if args.user or args.remove or args.yes:
        raise UsageError("--user, --remove and --yes go with --systemd")
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


def _serviced(args: argparse.Namespace, directory: Path) -> NewSpool:
    """Return what is wanted of the system's service, which has no user's variables."""
    if args.key_env is not None:
        raise UsageError("a service of the system has no variables of yours: give a --key-file")
    return _wanted(args, directory, ask_key=False)


def _wanted(args: argparse.Namespace, directory: Path, *, ask_key: bool = True) -> NewSpool:
    """Return what is wanted: as given, as answered, else as usual."""
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if args.base_url and not args.model:
        raise UsageError("--base-url goes with --model PROVIDER/MODEL")
    try:
        model = args.model or (asks and _ask_model()) or AgentSection().model
        if not _MODEL.fullmatch(model):
            raise UsageError(f"--model {escape(model)}: {_unnamed(model)}")
        provider = model.partition("/")[0]
        base_url = args.base_url or ""
        if not base_url and provider not in PRESETS:
            if not asks:
                known = ", ".join(PRESETS)
                raise UsageError(f"{escape(provider)} is none of {known}: give its --base-url too")
            base_url = input(
                f"Where is {escape(provider)}? As in http://10.0.0.7:8000/v1: "
            ).strip()
        key_env, key_file = _key(args, provider, asks=asks and ask_key)
        agents = args.agents if args.agents is not None else asks and _ask_agents()
    except EOFError:
        raise UsageError("nothing was made") from None
    if agents is False:
        agents = PoolSection().processes
    if not 1 <= agents <= _MAX_AGENTS:
        raise UsageError(f"--agents is a number from 1 to {_MAX_AGENTS:,}")
    return NewSpool(
        directory=directory,
        model=model,
        base_url=base_url,
        key_env=key_env,
        key_file=key_file,
        agents=agents,
    )


def _key(args: argparse.Namespace, provider: str, *, asks: bool) -> tuple[str, str]:
    """Return the variable, or the file, that holds the provider's key."""
    usual = str(PRESETS.get(provider, {}).get("api_key_env", ""))
    if args.no_key:
        return "", ""
    if args.key_file:
        return "", _file(args.key_file)
    if args.key_env is not None:
        return args.key_env, ""
    # A preset without a key is a server on this machine.
    if asks and (usual or provider not in PRESETS):
        return _ask_key(provider, usual)
    return usual, ""


def _file(path: str) -> str:
    """Return a path as config.toml has it: one of the home's own stays that."""
    return path if path.startswith("~/") else os.path.abspath(path)  # noqa: PTH100 (as above)


def _ask_model() -> str:
    usual = AgentSection().model
    print(f"batchd knows {', '.join(PRESETS)}; others need an address.")
    while True:
        answer = input(f"Which model does the work? PROVIDER/MODEL [{usual}]: ").strip() or usual
        if _MODEL.fullmatch(answer):
            return answer
        print(f"{escape(answer)}: {_unnamed(answer)}.")


def _unnamed(model: str) -> str:
    """Return what to write in place of a model's bare name: who sells it stands before it."""
    sold = [f"{seller}/{model}" for seller in PRESETS if model in pricing.names(seller)]
    return f"it is PROVIDER/MODEL, as in {sold[0] if sold else AgentSection().model}"


def _ask_key(provider: str, usual: str) -> tuple[str, str]:
    """Ask where a key is. What is answered is not repeated: it may be the key itself."""
    print(f"The key of {escape(provider)} is not written down: name a variable, or a file's path.")
    while True:
        answer = input(f"Where does it come from? [{usual or _NONE}]: ").strip() or usual
        if answer in {"", _NONE}:
            return "", ""
        if "/" in answer:
            return "", _file(answer)
        # Who gives the key itself is not to find it in a file that others may read.
        if _VARIABLE.fullmatch(answer) and (answer.isupper() or answer in os.environ):
            return answer, ""
        print(f"That is no NAME_OF_A_VARIABLE, no path with a slash in it, and not {_NONE}.")


def _ask_agents() -> int:
    usual = PoolSection().processes
    while True:
        answer = input(f"How many tasks at a time? [{usual}]: ").strip() or str(usual)
        if answer.isascii() and answer.isdecimal() and 1 <= int(answer[:5]) <= _MAX_AGENTS:
            return int(answer)
        print(f"It is a number from 1 to {_MAX_AGENTS:,}.")


def _refuse(wanted: NewSpool) -> None:
    """Refuse what would not work, before anything is made. Raises ``BatchdError``."""
    from batchd import visible  # noqa: PLC0415 (loads the sandbox; not for wrong arguments)

    try:
        # Variables of this session are none of the spool's.
        settings = config.load(
            wanted.config, {"HOME": os.environ.get("HOME", "")}, draft=wanted.text()
        )
        visible.refuse(settings)
    except ConfigError as error:
        raise UsageError(f"nothing was made: {'; '.join(map(str, error.problems))}") from None
    grave = next((found for found in permissions.exposures(settings) if found.grave), None)
    there = next(p for p in (wanted.directory, *wanted.directory.parents) if p.is_dir())
    if problem := grave or trust_lists.doubt(there, there.stat(), trust_lists.ours()):
        raise NotPossibleError(f"nothing was made: {problem}")


def _trust(wanted: NewSpool) -> None:
    """Trust the new directory, so that its configuration counts.

    Raises ``NotPossibleError`` where it does not, with what to do.
    """
    try:
        trust_lists.add(str(wanted.directory), os.environ)
        finding.trusted(wanted.config, os.environ)
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
        f"                 {wanted.agents:,} at a time; it counts when batchd runs there",
        "  inbox/         where task files are dropped",
        "  outbox/        where results appear",
        f"  {new_spool.SAMPLE}    a task file to try it with",
    ]
    if former:
        lines += ["It goes on with the store that an earlier version left there in .batchd/."]
    lines += ["", "Next:"]
    if os.environ.get(finding.VARIABLE):
        lines += [f"  unset {finding.VARIABLE}    # it goes before what lies in a directory"]
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
