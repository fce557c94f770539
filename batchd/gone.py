"""What is gone: each key, word, option and field of an earlier version, with what to write instead.

A stored thing of an earlier version goes on as it is; what people write is refused with this.
"""

from __future__ import annotations

from collections.abc import Mapping

_MAIL = (
    'mail goes by Apprise: kind = "apprise", and url_file with '
    "mailtos://USER:PASSWORD@HOST/?from=SENDER&to=RECEIVER"
)
_TRIED = "`batchd run --prompt ok --model PROVIDER/MODEL --budget 1` tries a model"

#: Keys of the configuration, as ``SECTION.KEY``; ``*``: any name.
KEYS: Mapping[str, str] = {
    "metrics.textfile": "set [metrics] listen and have Prometheus fetch it; for node_exporter, have "
    "a timer write what curl gets there into its file",
    **{
        f"notify.*.{key}": _MAIL
        for key in ("host", "port", "tls", "user", "password_env", "password_file", "sender", "to")
    },
}
#: Words that a key below ``[notify]`` had.
NOTIFY_WORDS: Mapping[str, str] = {
    "email": _MAIL,
    "model_retiring": "leave it out: `check` names models that end",
}
#: Options, as ``COMMAND --OPTION``.
OPTIONS: Mapping[str, str] = {
    "check --live": f"`batchd check` tries keys for nothing, and {_TRIED}",
    "run --private": "`BATCHD_PATHS__STATE=$(mktemp -d) batchd run FILE` uses a store of its own",
    "trust --system": "each user who runs batchd there says `batchd trust DIR`; what counts for all "
    "users is /etc/batchd/config.toml",
}
#: Fields of the control socket's requests, as ``VERB FIELD``.
FIELDS: Mapping[str, str] = {"check live": f"check asks no model any more: {_TRIED}"}
