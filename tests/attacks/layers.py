"""The layers that stop attacks, and for each the change of batchd's source that takes it away.

``weakened`` applies one at a time, and holds that the tests that name the layer fail without it.
Where each of two layers is enough, a test names both as one, with a plus between them: they are
taken away together. Where it is another one for a batchd
that runs as root, ``who`` says for whom a mark holds.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

#: In a file of ``batchd``: what stands there once, and what takes its place.
Edit = tuple[str, str, str]

#: Commands are shown to be confined before any of them runs: that must not stop the weaker door.
_UNPROBED: Edit = ("sandbox/probe.py", "if loose or ", "if False and ")

LAYERS: Mapping[str, tuple[Edit, ...]] = {
    # --- what a command is
    "everything": (
        ("sandbox/probe.py", 'if policy.backend == "none":\n        return ""', 'return ""'),
    ),
    "identity": (
        # Root stays root, with all capabilities, on a system that can be written.
        ("sandbox/command_user.py", "    if not as_root():\n        return []\n    return [\n        helper(\"setpriv\")", "    return []\n    return [\n        helper(\"setpriv\")"),
        ("sandbox/bwrap.py", '*("--cap-drop", "ALL")', '*("--cap-add", "ALL")'),
        ("sandbox/entry.py", "    os.setresgid(*[setup[\"gid\"]] * 3)\n    os.setresuid(*[setup[\"uid\"]] * 3)\n", ""),
        ("sandbox/entry.py", '    _checked(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")\n', ""),
        ("sandbox/entry.py", '_checked(_libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0), "PR_CAPBSET_DROP")', "pass"),
        ("sandbox/entry.py", '    _checked(_libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")\n', ""),
        ("sandbox/bwrap.py", 'options += ["--ro-bind", place, place]', 'options += ["--bind", place, place]'),
        _UNPROBED,
    ),
    "pids": (
        ("sandbox/bwrap.py", '"--unshare-pid", ', ""),
        ("sandbox/launch.py", '"--as-pid-1", ', ""),
        ("sandbox/entrance.py", '    "pid": 0x20000000,\n', ""),
        (
            "sandbox/bwrap.py",
            '"--unshare-all", *shared, "--unshare-user", "--disable-userns"',
            '"--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-user"',
        ),
    ),
    "network": (
        (
            "sandbox/bwrap.py",
            'shared = ["--share-net"] if network else []',
            'shared = ["--share-net"]',
        ),
        ("sandbox/bwrap.py", 'return options if network else [*options, "--unshare-net"]', "return options"),
        ("sandbox/entrance.py", 'kinds - ({"net"} if network else set())', 'kinds - {"net"}'),
    ),
    "mounts": (
        # The machine's /tmp instead of one of its own, with all that lies there.
        ("sandbox/bwrap.py", "*([] if own_tmp else _tmpfs(policy.tmp_bytes, TMP)),", '*("--bind", TMP, TMP),'),
    ),
    "visible": (("spool/safety.py", "    if problems:\n", "    if False:\n"),),
    "hidden": (("sandbox/shown.py", "elif there and not rule.seen:", "elif False:"),),
    "sockets": (("sandbox/shown.py", "self._found = sockets(self._shown)", "self._found = ()"),),
    "mounted sockets": (("sandbox/shown.py", "if other.device == mount.device and within(inner, other.root):", "if False:"),),
    "still proc": (("sandbox/bwrap.py", '*("--remount-ro", "/proc"),', ""),),
    "seccomp": (("sandbox/seccomp.py", "code.append(_give(_ALLOW))", "code = [_give(_ALLOW)]"),),
    "setid": (("sandbox/seccomp.py", "_SETUID, _SETGID = 0o4000, 0o2000", "_SETUID, _SETGID = 0, 0"),
              ("sandbox/seccomp.py", '    "openat2": (437, 437),\n', "")),
    "preallocation": (("sandbox/seccomp.py", "return [_refuse(errno.EOPNOTSUPP)]", "return [_give(_ALLOW)]"),
                      ("sandbox/seccomp.py", '    "file_setattr": (469, 469),\n', "")),
    "system v": (("sandbox/seccomp.py", "    yield _ABSENT, [_refuse(errno.ENOSYS)]\n", ""),
                 ("sandbox/seccomp.py", "_MOST_SEGMENT = 4096", "_MOST_SEGMENT = 1 << 31")),
    "by reference": (("sandbox/seccomp.py", "    yield _BY_REFERENCE, [_refuse(errno.EINVAL)]\n", ""),),
    "attributes": (("sandbox/seccomp.py", "_MOST_ATTRIBUTE = 256", "_MOST_ATTRIBUTE = 1 << 20"),),
    "session": (
        ("sandbox/launch.py", "setsid=True,", "setpgroup=0,"),
        ("sandbox/bwrap.py", '"--new-session", ', ""),
        ("sandbox/entry.py", "\n            setsid=True,", "\n            setpgroup=0,"),
        ("sandbox/entry.py", "\n        setsid=True,", "\n        setpgroup=0,"),
    ),
    "environment": (
        ("sandbox/entry.py", "words[1:],\n            {},", "words[1:],\n            dict(os.environ),"),
        ("sandbox/launch.py", '"/usr/bin/env", "-i", ', '"/usr/bin/env", '),
        ("sandbox/bwrap.py", '"--chdir", "/", "--clearenv"', '"--chdir", "/"'),
        ("sandbox/entrance.py", "list(_PROGRAM), {}, ()", "list(_PROGRAM), dict(os.environ), ()"),
    ),
    "descriptors": (("sandbox/launch.py", "    _withhold()\n", ""),),
    "variables": (("sandbox/command_user.py", "return as_root() and ", "return False and "),),
    "variables arrive": (
        ("sandbox/command_user.py", "{carriers.get(name, name): value for name, value in env.items()}", "{}"),
        ("sandbox/entrance.py", "{**usual(who, home=TMP), **env}", "usual(who, home=TMP)"),
    ),
    "command lines": (
        (
            "sandbox/workplace.py",
            'command = [word.encode("utf-8", "replace") for word in argv]',
            "env = [f'{name}={value}' for name, value in self._setting.env.items()]\n"
            "        command = [word.encode() for word in (*argv, *env)]",
        ),
    ),
    # --- how much of it there is, and for how long
    "limits": (
        ("sandbox/command_user.py", "_capped(kind, value))", "_capped(kind, value << 20 if kind != resource.RLIMIT_NPROC else value))"),
    ),
    "processes": (
        ("sandbox/command_user.py", "processes = policy.max_processes * ", "processes = 6 * policy.max_processes * "),
        ("sandbox/command_watch.py", "if watch in self._watched and not watch.excess:", "if False:"),
    ),
    "arguments": (
        # Through a pipe, which must take all of them at once.
        ("sandbox/launch.py", "        common = numbered(held(memory_file(data)))",
         "        import fcntl\n        reading, end = os.pipe()\n        fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 200_000)\n        os.write(end, data)\n        os.close(end)\n        common = numbered(held(reading))"),
    ),
    "watch": (("sandbox/command_watch.py", "if watch in self._watched and not watch.excess:", "if False:"),),
    "memory of sockets": (("sandbox/command_watch.py", "or 0) * _SOCKET", "or 0) * 0"),),
    "lines of maps": (
        ("sandbox/process_table.py", '(folder / "maps").read_bytes().split(b"\\n")',
         '(folder / "maps").read_bytes().splitlines()'),
    ),
    "memory of names": (("sandbox/command_watch.py", "files += (disk.f_files - disk.f_ffree) * _NAME", "pass"),),
    "memory of files": (("sandbox/command_watch.py", "files + opened.nameless((memory_device(),))", "0"),),
    "memory of the kernel": (("sandbox/command_watch.py", "opened.kernel + sockets", "sockets"),),
    "narrow sockets": (("sandbox/seccomp.py", "_on(_SO_SNDBUF, [_refuse(0)])", "_on(_SO_SNDBUF, [_give(_ALLOW)])"),),
    "fair sockets": (("sandbox/command_watch.py", "_SOCKET, _NAME = 256 << 10", "_SOCKET, _NAME = 256 << 12"),),
    "last look": (("agent/evaluate.py", "or not (full := await place.full()):", 'or not (full := ""):'),),
    "first look": (("sandbox/disk.py", "        await self.before()\n        return await", "        return await"),),
    "ballast": (("store/store.py", "urgent = group[0].urgent and ballast.lacks_room(error)", "urgent = False"),),
    "kept measure": (("agent/loop.py", "held=self.state.terms.held if", "held=None if"),),
    "fair memory": (("sandbox/command_watch.py", "total += max(files, sum(shared for _, shared in parts))", "total *= 10"),),
    "lasting tmp": (("sandbox/bwrap.py", "*([] if own_tmp else _tmpfs(policy.tmp_bytes, TMP)),", "*_tmpfs(policy.tmp_bytes, TMP),"),),
    "private tmp": (("sandbox/folders.py", "mkdir(mode=0o700)", "mkdir(mode=0o755)"),),
    "opened tmp": (
        ("sandbox/folders.py", "O_DIRECTORY | os.O_NOFOLLOW", "O_DIRECTORY"),
        ("sandbox/folders.py", "trees.let_in(above, name)", "pass"),
    ),
    "output": (("sandbox/output.py", "room = self._half - len(self._head)", "room = len(data)"),),
    "time": (("sandbox/task_sandbox.py", "entrance.ended(deadline - clock())", "entrance.ended(20 + deadline - clock())"),),
    "orphans": (
        ("sandbox/guard.py", "[ $# = 0 ] && exit", "exit"),
        ("sandbox/launch.py", ', "--die-with-parent"]', "]"),
        # Its first process ends with the worker, too.
        ("sandbox/launch.py", '"/bin/cat")', '"/bin/sh", "-c", "cat; sleep 1000")'),
        # A worker whose daemon is gone ends what runs by itself, if it is not killed before.
        ("pool/worker.py", "await self._ended.wait()\n", "await self._ended.wait() and os._exit(0)\n"),
    ),
    # --- sandboxes that stay
    "undumpable": (
        ("sandbox/entry.py", "for such processes.\n    _checked(_libc.prctl(_SET_DUMPABLE, 0,", "\n    _checked(_libc.prctl(_SET_DUMPABLE, 1,"),
    ),
    "tools apart": (("sandbox/workplace.py", "(own and not self.running)", "own"),),
    "cleared": (("sandbox/workplace.py", 'await self.clear("a check began")', "pass"),),
    "kept apart": (("sandbox/process_table.py", "return all(_descends(process, known, table) for process in rest)", "return True"),),
    # --- directories and files
    "links": (
        ("sandbox/directory.py", "_RESOLVE_NO_SYMLINKS = 0x04", "_RESOLVE_NO_SYMLINKS = 0"),
        ("sandbox/directory.py", "_RESOLVE_BENEATH = 0x08", "_RESOLVE_BENEATH = 0"),
    ),
    "listing": (
        ("sandbox/directory.py", "entry.is_dir(follow_symlinks=False):\n                if", "entry.is_dir():\n                if"),
        ("sandbox/directory.py", "_RESOLVE_NO_SYMLINKS = 0x04", "_RESOLVE_NO_SYMLINKS = 0"),
        ("sandbox/directory.py", "_RESOLVE_BENEATH = 0x08", "_RESOLVE_BENEATH = 0"),
    ),
    "trust": (("config/trust.py", "            return frozenset()\n", "            return frozenset(range(100_000))\n"),),
    "rooms": (("spool/task_directories.py", "for path, name in self._closed.items():", "for path, name in ():"),),
    "triggers": (("sandbox/trigger_search.py", "return _Search(top, time.monotonic() + seconds).run(own)", "return {}"),),
    "triggers still": (("sandbox/trigger_search.py", "elif inside and name in _OBEYED:", "elif inside and entry.is_file():"),),
    "whole files": (
        ("spool/files.py", "    temporary = _temporary(path.name)\n",
         "    with path.open('wb') as plain:\n        return plain.write(data)\n    temporary = _temporary(path.name)\n"),
    ),
    "inbox": (("spool/inbox.py", "if not stat.S_ISREG(status.st_mode):", "if False:"),),
    "claims": (
        ("spool/claims.py", "leads = _leads(inbox, found)", "leads = False"),
        ("spool/claims.py", "        if not files.keeps_apart(inbox):", "        if False:"),
        ("spool/claims.py", "if there >= 0 and files.ours_alone(there):", "if there >= 0:"),
        ("spool/files.py", "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC",
         "_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC"),
    ),
    "removal": (("trees.py", "        waiting = list(self._unlink(self._top, keep=self._last))",
                 "        import shutil\n        return shutil.rmtree(f'/proc/self/fd/{self._top}/')\n        waiting = []"),),
    # --- repositories
    "read-only base": (("sandbox/launch.py", '"--ro-bind-fd", numbered(folders.base)', '"--bind-fd", numbered(folders.base)'),),
    "git of our own": (("workspace/scripts/changed.sh", 'export GIT_DIR="$own/git"', 'export GIT_DIR="$PWD/.git"'),),
    "fetched inside": (("workspace/fetching.py", "if job.fetch and job.origin.remote:", "if job.fetch:"),),
    "no hooks": (("workspace/git.py", '    "core.hooksPath": "/dev/null",\n', ""),),
    "no filters": (("workspace/scripts/apply.sh", 'objects" GIT_DIR="$own/git"', 'objects" GIT_DIR="$PWD/$store"'),),
    # --- the network, host by host
    "list": (("sandbox/network/destinations.py", "if host.holds(text, port)]\n        if not held", "]\n        if not held"),),
    "private": (("sandbox/network/destinations.py", "why = policy.forbidden(address, private=private)", "return ''"),),
    "pinned": (
        ("sandbox/network/proxy.py", "        return await _first(good, request.port)",
         "        good = await destinations.looked_up(str(request.host), request.port)\n        return await _first(good, request.port)"),
    ),
    "one request": (
        ("sandbox/network/proxy.py", "                if request.length is None:\n", "                if True:\n                    await carry(client, server)\n                elif request.length is None:\n"),
    ),
    "plain lines": (("sandbox/network/http_heads.py", "    _plain(raw)\n    lower", "    lower"),),
    "ceiling of hosts": (("sandbox/sandbox.py", "if why := policy.refusal(asked, self.policy.network):", 'if why := "":'),),
    "numbers": (("records/policy.py", "if not _NUMBER.fullmatch(labels[-1]):", "if True:"),),
    "queue": (("sandbox/network/proxy.py", "MOST_CONNECTIONS = 64", "MOST_CONNECTIONS = 6400"),),
    "helper": (("sandbox/entry.py", 'if int(_status(self.first)[_PARENT]) != self.bwrap:', "if False:"),),
    "own modules": (
        ("pool/fork_server.py", 'interpreter_flags(), "-P"]', "interpreter_flags()]"),
        ("cli/demo.py", 'sys.executable, "-P", "-m"', 'sys.executable, "-m"'),
        # What looks elsewhere than where it was begun finds nothing there.
        ("cli/serve.py", '    os.chdir("/")\n', ""),
        ("cli/runs/run_daemon.py", '"-P", "-m"', '"-m"'),
    ),
    # --- secrets
    "sealing": (("processes.py", "ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)", "pass"),),
    "forgetting": (("processes.py", "ctypes.memset(address, 0, len(ctypes.string_at(address)))", "pass"),),
    "links out": (("agent/perform.py", "if links is not None and not new:", "if True:"),),
    "limits at the check": (("agent/evaluate.py", " and not ran.excess", ""),),
    "masking": (("masking.py", "for needle in self._needles:", "for needle in ():"),),
    # --- words
    "unknown keys": (("spool/taskspec.py", 'extra="forbid"', 'extra="ignore"'),),
    "ceiling": (("spool/crosscheck.py", "(asked == 0 or asked > ceiling)", "False"),),
    "escaping": (("log.py", "return _CONTROL.sub(lambda m: ascii(m.group())[1:-1], text)", "return text"),),
    "json": (("log.py", "return _CONTROL_OF_JSON.sub(", "return text or _CONTROL_OF_JSON.sub("),),
    "whole letters": (("records/models.py", "return valid_throughout(json.loads(", "return (json.loads("),),
    "evaluation": (("agent/evaluate.py", "done = ran.exit_code == 0 and not ran.timed_out", "done = True"),),
    "apart": (
        ("sandbox/workplace.py", '        tmp = "" if self._folders.tmp is None else apart_tmp(self._folders.tmp_path)\n',
         '        yield self\n        return\n        tmp = ""\n'),
    ),
    "calls": (
        ("agent/tools.py", "_JSON.raw_decode(text, place)", '_JSON.raw_decode(text, text.index("{", place))'),
        ("agent/tools.py", "        return ()\n    return tuple(structs.replace(", "        pass\n    return tuple(structs.replace("),
    ),
    "validator": (
        ("agent/evaluate.py", "SCHEMA_TIMEOUT_S = 10.0", "SCHEMA_TIMEOUT_S = 3600.0"),
        ("agent/schemachild.py", "    processes.limit(resource.RLIMIT_CPU, _CPU_S)\n", ""),
    ),
    "foreign references": (("spool/answer_schemas.py", 'isinstance(reference, str) and not reference.startswith("#")', "False"),),
    "references": (("agent/schemachild.py", "(schema, registry=Registry())", "(schema)"),),
    "loop": (("taskstate/state.py", "looped = circling(recent)", "looped = False"),),
    "measure": (
        ("llm/exchange.py", "if left < 0:", "if False:"),
        ("llm/answer.py", "_MOST_VALUES = 1 << 18", "_MOST_VALUES = 1 << 30"),
    ),
    "belief": (("agent/charges.py", "    if not usage.beyond(", "    if True or not usage.beyond("),),
    "proof": (("governor/estimates.py", "PROOF = 2", "PROOF = 1"),),
    "purse": (("governor/treasury.py", "purse.spent += spent", "purse.spent += 0.0"),),
}  # fmt: skip


_TOGETHER = " + "


def edits(named: str) -> list[Edit]:
    """Return the changes that take away a layer, or several of them."""
    return [edit for layer in named.split(_TOGETHER) for edit in LAYERS[layer]]


def named() -> set[str]:
    """Return the layers, alone or together, that the attacks name;
    of all attacks, also of those not drawn today.
    """
    calls = (
        node
        for file in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "stopped_by"
    )
    return {str(ast.literal_eval(name)) for call in calls for name in call.args}


def layers_of(item: pytest.Item) -> set[str]:
    """Return the layers that a test says stop it."""
    who = getattr(item, "callspec", None) and item.callspec.params.get("who")  # type: ignore[attr-defined] # a function's
    marks = [m for m in item.iter_markers("stopped_by") if m.kwargs.get("who", who) == who]
    return {name for mark in marks for name in mark.args}
