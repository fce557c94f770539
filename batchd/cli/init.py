"""``batchd init``: makes a spool, and says what comes next."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from batchd import config, pricing
from batchd.cli.display import formatting
from batchd.config import trust
from batchd.config.constraints import reachable
from batchd.config.providers import PRESETS
from batchd.config.sections import AgentSection, PoolSection
from batchd.errors import BatchdError, ConfigError, NotPossibleError, UsageError
from batchd.log import escape
from batchd.spool import new_spool, permissions
from batchd.spool.new_spool import NewSpool

#: What stands for no key.
_NO_KEY = "none"
_MAX_AGENTS = 1000
_MODEL = re.compile(r"[^\s/]+/\S+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_EXAMPLE = "http://10.0.0.7:8000/v1"
#: What the dialects add to an address by themselves.
_ENDPOINTS = ("/chat/completions", "/responses", "/messages")


def ask_model() -> str:
    """Ask which model does the work."""
    usual = AgentSection().model
    formatting.say(f"batchd knows {', '.join(PRESETS)}; others need an address.")
    return _asked(f"Which model does the work? PROVIDER/MODEL [{usual}]: ", usual, wrong_model)


def ask_address(provider: str) -> str:
    """Ask where a provider is."""
    return _asked(f"Where is {escape(provider)}? As in {_EXAMPLE}: ", "", wrong_address)


def ask_agents() -> int:
    """Ask how many tasks are worked on at a time."""
    usual = str(PoolSection().processes)
    return int(_asked(f"How many tasks at a time? [{usual}]: ", usual, wrong_agents))


def ask_key(provider: str, usual: str, fits: Callable[[str, str], str]) -> tuple[str, str]:
    """Ask where a key is; return the variable, or the file. ``fits`` says what is wrong with them.

    What is answered is not repeated: it may be the key itself.
    """
    formatting.say(
        f"The key of {escape(provider)} is not written down: name a variable, or a file's path."
    )
    while True:
        answer = input(f"Where does it come from? [{usual or _NO_KEY}]: ").strip() or usual
        problem = f"That is no NAME_OF_A_VARIABLE, no path with a slash in it, and not {_NO_KEY}"
        if found := _meant(answer):
            problem = fits(*found)
            if not problem:
                return found
        formatting.say(f"{problem}.")


def _file(path: str) -> str:
    """Return a path as config.toml has it: one of the home's own stays that."""
    return path if path.startswith("~/") else os.path.abspath(path)  # no link is followed


def _meant(answer: str) -> tuple[str, str] | None:
    if answer in {"", _NO_KEY}:
        return "", ""
    if "/" in answer:
        return "", _file(answer)
    # Who gives the key itself is not to find it in a file that others may read.
    if _VARIABLE.fullmatch(answer) and (answer.isupper() or answer in os.environ):
        return answer, ""
    return None


def wrong_model(model: str) -> str:
    """Return what to write in place of a model's bare name: who sells it stands before it;
    empty: nothing is wrong.
    """
    if _MODEL.fullmatch(model):
        return ""
    sold = [f"{seller}/{model}" for seller in PRESETS if model in pricing.names(seller)]
    return f"it is PROVIDER/MODEL, as in {sold[0] if sold else AgentSection().model}"


def wrong_address(url: str) -> str:
    """Return why a provider cannot be reached by an address; empty: it can, as far as it shows."""
    if not url:
        return f"an address is needed, as in {_EXAMPLE}"
    if "@" in url.partition("?")[0]:
        return "leave user and password out of it: the key is asked for apart"
    if not _SCHEME.match(url):
        begun = "" if "://" in url else f": write http://{url}, or https://"
        return f"it must begin with http:// or https://{begun}"
    if not reachable(url):
        return f"it must be http(s)://HOST[:PORT]/PATH, as in {_EXAMPLE}"
    ending = next((e for e in _ENDPOINTS if url.rstrip("/").endswith(e)), "")
    return ending and f"leave {ending} out: batchd adds it"


def wrong_agents(answer: str) -> str:
    """Return why that is no number of tasks at a time; empty: it is one."""
    number = answer.isascii() and answer.isdecimal() and 1 <= int(answer[:5]) <= _MAX_AGENTS
    return "" if number else f"it is a number from 1 to {_MAX_AGENTS:,}"


def _asked(question: str, usual: str, wrong: Callable[[str], str]) -> str:
    """Ask until nothing is wrong with the answer."""
    while True:
        answer = input(question).strip() or usual
        problem = wrong(answer)
        if not problem:
            return answer
        shown = f"{escape(answer)}: " if answer and "@" not in answer else "It does not work: "
        formatting.say(f"{shown}{problem}.")


_NOTHING = "nothing was made"


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
    parser.add_argument("--remove", action="store_true", help="with --systemd: undo exactly that")
    parser.add_argument("--yes", action="store_true", help="with --systemd: do not ask")
    parser.epilog = (
        "On a terminal it asks for what is not given: the model, where its key comes from, how many "
        "tasks at a time; elsewhere it asks nothing. It overwrites nothing, puts the directory on the "
        "list of trusted ones, as `batchd trust` does, and says what comes next."
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
            return _wanted(args, place, ask_key=False)

        return systemd.run(args, directory, serviced)
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


def _wanted(args: argparse.Namespace, directory: Path, *, ask_key: bool = True) -> NewSpool:
    """Return what is wanted: as given, as answered, else as usual."""
    _check_given(args)
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    usual = NewSpool(
        directory=directory, model=AgentSection().model, agents=PoolSection().processes
    )
    if asks:
        _refuse(usual)  # what is wrong with the directory is said before anything is asked
    try:
        model = args.model or (asks and ask_model()) or usual.model
        wanted = replace(usual, model=model, base_url=_address(args, model, asks=asks))
        key_env, key_file = _key(args, wanted, asks=asks and ask_key)
        agents = args.agents or (asks and ask_agents()) or usual.agents
    except EOFError:
        raise UsageError(_NOTHING) from None
    return replace(wanted, key_env=key_env, key_file=key_file, agents=agents)


def _check_given(args: argparse.Namespace) -> None:
    """Refuse arguments that would not work, before anything is asked. Raises ``UsageError``."""
    if args.base_url and not args.model:
        raise UsageError("--base-url goes with --model PROVIDER/MODEL")
    if args.model and (wrong := wrong_model(args.model)):
        raise UsageError(f"--model {escape(args.model)}: {wrong}")
    if args.base_url and (wrong := wrong_address(args.base_url)):
        given = "" if "@" in args.base_url else f" {escape(args.base_url)}"
        raise UsageError(f"--base-url{given}: {wrong}")
    if args.agents is not None and (wrong := wrong_agents(str(args.agents))):
        raise UsageError(f"--agents {args.agents}: {wrong}")


def _address(args: argparse.Namespace, model: str, *, asks: bool) -> str:
    """Return where the provider is; empty: as its preset says."""
    provider = model.partition("/")[0]
    if args.base_url or provider in PRESETS:
        return args.base_url or ""
    if not asks:
        known = ", ".join(PRESETS)
        raise UsageError(f"{escape(provider)} is none of {known}: give its --base-url too")
    return ask_address(provider)


def _key(args: argparse.Namespace, wanted: NewSpool, *, asks: bool) -> tuple[str, str]:
    """Return the variable, or the file, that holds the provider's key."""
    usual = str(PRESETS.get(wanted.provider, {}).get("api_key_env", ""))
    if args.no_key:
        return "", ""
    if args.key_file:
        return "", _file(args.key_file)
    if args.key_env is not None:
        return args.key_env, ""

    def wrong(key_env: str, key_file: str) -> str:
        try:
            _refuse(replace(wanted, key_env=key_env, key_file=key_file))
        except BatchdError as error:
            return str(error).removeprefix(f"{_NOTHING}: ")
        return ""

    # A preset without a key is a server on this machine.
    if asks and (usual or wanted.provider not in PRESETS):
        return ask_key(wanted.provider, usual, wrong)
    return usual, ""


def _refuse(wanted: NewSpool) -> None:
    """Refuse what would not work, before anything is made. Raises ``BatchdError``."""
    from batchd import visible  # loads the sandbox; not for wrong arguments

    try:
        # Variables of this session are none of the spool's.
        settings = config.load(
            wanted.config, {"HOME": os.environ.get("HOME", "")}, draft=wanted.text()
        )
        visible.refuse(settings)
    except ConfigError as error:
        raise UsageError(f"{_NOTHING}: {'; '.join(map(str, error.problems))}") from None
    grave = next((found for found in permissions.exposures(settings) if found.grave), None)
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
        f"                 {wanted.agents:,} at a time; it counts when batchd runs there",
        "  inbox/         where task files are dropped",
        "  outbox/        where results appear",
        f"  {new_spool.SAMPLE}    a task file to try it with",
    ]
    if former:
        lines += ["It goes on with the store that an earlier version left there in .batchd/."]
    lines += ["", "Next:"]
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
