"""What is gone: each key, word, option and field of an earlier version, with what to write instead.

A stored thing of an earlier version goes on as it is; what people write is refused with this."""

from __future__ import annotations

from collections.abc import Mapping

_BY_APPRISE = (
    'mail goes by Apprise: kind = "apprise", and url_file with '
    "mailtos://USER:PASSWORD@HOST/?from=SENDER&to=RECEIVER"
)
_TRIED = "`batchd run --prompt ok --model PROVIDER/MODEL --budget 1` tries a model"

_MACHINES = (
    'name what starts a worker there: [pool] machines = [{name = "node7", command = '
    '["ssh", "node7", "batchd", "worker"], processes = 4}]; see docs/cluster.md'
)
_PLACED = 'leave it out, or name a machine of [pool] machines: "machine": "node7"'

#: Keys of the configuration, as ``SECTION.KEY``; ``*``: any name.
GONE_KEYS: Mapping[str, str] = {
    "metrics.textfile": "set [metrics] listen and have Prometheus fetch it; for node_exporter, have "
    "a timer write what curl gets there into its file",
    "log.file": "redirect standard error, which gets JSON lines then: batchd serve 2>> FILE, or "
    "StandardError=append:FILE in the unit",
    "pool.listen": _MACHINES,
    "pool.advertise": _MACHINES,
    "pool.gpus": "leave it out: a task may name its machine",
    "pool.labels": "leave it out: a task may name its machine",
    "workspace.shared": "leave it out: machines share the disks",
    **{
        f"notify.*.{key}": _BY_APPRISE
        for key in ("host", "port", "tls", "user", "password_env", "password_file", "sender", "to")
    },
}
#: Words that a key below ``[notify]`` had.
GONE_NOTIFY_WORDS: Mapping[str, str] = {
    "email": _BY_APPRISE,
    "model_retiring": "leave it out: `check` names models that end",
}
#: Keys of a task, or of a batch.
GONE_TASK_KEYS: Mapping[str, str] = {"needs": _PLACED}
#: Commands, and verbs of the control socket.
GONE_COMMANDS: Mapping[str, str] = {"invite": _MACHINES}
#: Options, as ``COMMAND --OPTION``.
GONE_OPTIONS: Mapping[str, str] = {
    "check --live": f"`batchd check` tries keys for nothing, and {_TRIED}",
    "cost --batch": "name the batch alone: `batchd cost BATCH`",
    **{
        f"worker {option}": _MACHINES
        for option in ("--join", "--tied", "--node", "--gpus", "--label", "--cache", "--cache-gb")
    },
    "restore --as-is": "remove the file `home` of a state directory that was moved: it goes on",
    "run --here": "`BATCHD_PATHS__OUTBOX=$PWD/outbox batchd run FILE` has results there",
    "run --private": "`BATCHD_PATHS__STATE=$(mktemp -d) batchd run FILE` uses a store of its own",
    "trust --system": "each user who runs batchd there says `batchd trust DIR`; what counts for all "
    "users is /etc/batchd/config.toml",
}
#: Fields of the control socket's requests, as ``VERB FIELD``.
GONE_FIELDS: Mapping[str, str] = {"check live": f"check asks no model any more: {_TRIED}"}
