"""The check of what commands would see of batchd's own:
refused at each start and reload, with the fix.
"""

from __future__ import annotations

from batchd import sandbox, silent_paths
from batchd.config import Config, operator_files
from batchd.errors import ConfigError, NotPossibleError
from batchd.log import Action, get_logger


def refuse(config: Config) -> None:
    """Return where commands see nothing of the spool and of secrets.

    Raises ``ConfigError`` with all that they would.

    Raises ``NotPossibleError`` where what they see cannot be found out, also since a folder
    does not answer.
    """
    own = [*operator_files.kept(config, config.file)]
    silent_paths.refuse(*(place.path for place in own))
    try:
        problems = tuple(sandbox.seen(config.sandbox_policy(), own))
    except ValueError as error:
        raise NotPossibleError(str(error)) from None
    if problems:
        raise ConfigError(problems, config.file)


def warn(config: Config) -> None:
    """Report what they see and had better not: what other tasks work on, a home;
    not of a folder that does not answer.
    """
    places = [*operator_files.exposed(config)]
    silent = silent_paths.among(place.path for place in places)
    there = [place for place in places if place.path not in silent]
    for problem in sandbox.seen(config.sandbox_policy(), there, around=False):
        path, why = problem.place, problem.message
        get_logger().warning(Action.EXPOSED, path=path, message=why, mend=problem.hint)
