"""Notifications reach their receivers: a real mail server,
a real receiver of webhooks, a command; also after being down.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import ssl
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from loglines import logged
from patience import PATIENCE_S
from ports import free_port

from batchd.config.sections import ReceiverSection
from batchd.masking import Masker
from batchd.notify import channels, messages
from batchd.notify.channels import ReceiverTarget
from batchd.records import Batch
from batchd.spool.ulid import ulid
from batchd.store import lookups
from batchd.store.database_file import open_reader
from batchd.store.rows import WaitingNotice
from tests.conftest import Spool
from tests.integration.receivers import MailServer, Webhook

pytestmark = pytest.mark.in_turns

KEY = "the-key-for-signatures-1"
PASSWORD = "the-password-of-mail-2"


def configure(spool: Spool, text: str, **values: Any) -> None:
    """Add receivers to a spool's configuration."""
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    with (spool.folder / "config.toml").open("a") as file:
        file.write(text)


def drop(spool: Spool, name: str, *checks: str, **batch: Any) -> None:
    """Drop a batch of one task a check."""
    tasks = [
        {"first_prompt": "Do it.", "check": check, "limits": {"max_iterations": 1}}
        for check in checks
    ]
    path = spool.write(f".{name}.json", tasks, **batch)
    path.rename(spool.folder / "inbox" / f"{name}.json")


def lines(spool: Spool, action: str) -> list[dict[str, Any]]:
    """Return the log's lines of one kind."""
    return logged(spool.folder / "daemon.log", action)


def waiting(spool: Spool, name: str) -> list[WaitingNotice]:
    """Return what waits for a receiver."""
    db = open_reader(spool.folder / ".batchd/batchd.db")
    try:
        return lookups.notices(db, name)
    finally:
        db.close()


@pytest.fixture
def notifying(spool: Spool) -> Spool:
    """A spool with an inbox, and keys for its receivers."""
    (spool.folder / "inbox").mkdir()
    (spool.folder / "hook.key").write_text(f"{KEY}\n")
    (spool.folder / "hook.key").chmod(0o600)
    return spool


def mailbox(spool: Spool, **options: Any) -> MailServer:
    """Return a mail server, whose address stands where the configuration looks for it."""
    mail = MailServer(**options)
    mail.options = {"authenticator": mail.login, "auth_require_tls": False}
    url = spool.folder / "mail.url"
    url.write_text(MAIL_URL.replace("@mail@", str(mail.port)))
    url.chmod(0o600)
    return mail


MAIL = """
[notify.me]
kind = "apprise"
url_file = "mail.url"
"""
#: What stands in that file.
MAIL_URL = (
    f"mailto://batchd:{PASSWORD}@127.0.0.1:@mail@/?mode=insecure&from=batchd@example.com"
    "&to=me@example.com,you@example.com"
)
HOOK = """
[notify.hook]
kind = "webhook"
url = "@url@"
secret_file = "hook.key"
headers = { X-Team = "night" }
"""
SLEEPER = """
[notify.sleeper]
kind = "command"
command = ["sh", "-c", "sleep 4243 & wait"]
"""
TOOL = """
[notify.tool]
kind = "command"
on = ["batch_failed"]
command = ["sh", "-c", 'cat > "@home@/json"; env > "@home@/env"; echo heard $BATCHD_BATCH']
"""
CHAT = """
[notify.chat]
kind = "apprise"
on = ["batch_failed"]
url = "json://127.0.0.1:@chat@/chat/"
"""


def test_each_way_gets_what_happened(notifying: Spool) -> None:
    """A start, and a batch that partly failed, come by mail,
    as signed JSON of the published format, to a command and by Apprise.
    """
    mail, hook, chat = mailbox(notifying), Webhook(), Webhook()
    home = notifying.folder / "home"
    home.mkdir()
    every = MAIL + HOOK + TOOL + CHAT
    configure(notifying, every, url=hook.url, home=home, chat=chat.port)
    with mail, hook, chat, notifying.serving():
        notifying.eventually(lambda: mail.mails and hook.posts)
        drop(notifying, "games", "true", "true", "echo no luck; false")
        notifying.eventually(lambda: len(mail.mails) == 4 and len(hook.posts) == 2 and chat.posts)
        notifying.eventually(lambda: len(lines(notifying, "notified")) == 6)

    start, _, end, _ = mail.mails
    assert str(start["subject"]).endswith("] the daemon has started")
    assert str(end["subject"]).endswith("] batch games: 2 of 3 tasks completed")
    assert str(end["from"]) == "batchd@example.com"
    assert [sent.rcpt_tos for sent in mail.envelopes[2:]] == [
        ["me@example.com"],
        ["you@example.com"],
    ]
    assert set(mail.logins) == {(b"batchd", PASSWORD.encode())}
    text = end.get_content()
    for piece in (
        "tasks: 2 completed, 1 not accepted (66.7 % success)",
        "cost: $0.0",
        f"folder: {notifying.folder}/outbox/games",
        "1 not accepted, as 003",
        "To go on: batchd status games shows each task; batchd retry --failed games",
    ):
        assert piece in text, text

    schema = json.loads(notifying.batchd("schema", "notification").stdout)
    for post in hook.posts:
        jsonschema.validate(post.notification, schema)
        assert post.signed_with(KEY.encode())
        assert (post.path, post.headers["x-team"]) == ("/notified", "night")
    (event,) = hook.posts[1].notification["events"]
    summary = notifying.result("games", "summary")
    assert event["event"] == "batch_failed"
    assert event["batch"]["counts"] == summary["counts"]
    assert event["batch"]["cost_usd"] == summary["cost"]["total"] > 0
    assert event["batch"]["total_tokens"] == summary["usage"]["total_tokens"]
    assert event["batch"]["failures"][0]["count"] == 1

    assert json.loads((home / "json").read_text())["events"] == [event]
    env = (home / "env").read_text()
    assert "BATCHD_BATCH=games\n" in env
    assert "BATCHD_EVENT=batch_failed\n" in env
    assert {"title", "message"} <= json.loads(chat.posts[0].body).keys()
    assert "2 of 3 tasks completed" in json.loads(chat.posts[0].body)["title"]
    assert "exit code 0: heard games" in [line["answer"] for line in lines(notifying, "notified")]
    assert not any(waiting(notifying, name) for name in ("me", "hook", "tool", "chat"))


def test_what_is_down_for_a_while_gets_it_later(notifying: Spool) -> None:
    """Mail server and webhook are not there, then busy: each message arrives once,
    under the id of its first try; one line reports the failure.
    """
    mail, hook = mailbox(notifying, answers=["451 later", "250 taken"]), Webhook()
    hook.answers = [(503, {}), (429, {}), (204, {})]
    configure(notifying, MAIL + HOOK, url=hook.url)
    with notifying.serving():
        notifying.eventually(lambda: len(lines(notifying, "notify_failed")) == 2)
        drop(notifying, "b", "true")
        # No receiver listens: what they are to get is in the store.
        notifying.eventually(
            lambda: len(waiting(notifying, "hook") + waiting(notifying, "me")) == 4
        )
        assert notifying.result("b", "summary")["counts"]["completed"] == 1
        with mail, hook:
            notifying.eventually(
                lambda: (
                    {e["event"] for p in hook.posts[2:] for e in p.notification["events"]}
                    >= {"daemon_started", "batch_completed"}
                )
            )
            notifying.eventually(
                lambda: (
                    "batch b: its task is completed" in "".join(m.get_content() for m in mail.mails)
                )
            )
            notifying.eventually(
                lambda: not waiting(notifying, "hook") and not waiting(notifying, "me")
            )
    first, second, third = hook.posts[:3]
    assert (
        first.headers["webhook-id"] == second.headers["webhook-id"] == third.headers["webhook-id"]
    )
    assert first.body == third.body
    taken = [event["id"] for post in hook.posts[2:] for event in post.notification["events"]]
    assert len(taken) == len(set(taken)) == 2
    assert len(lines(notifying, "notify_failed")) == 2
    assert {line["receiver"] for line in lines(notifying, "notified") if line["tries"] > 2} == {
        "me",
        "hook",
    }


def test_no_is_an_answer(notifying: Spool) -> None:
    """A receiver that refuses for good is asked once, one that is away for too long no longer;
    the log says so, with the fix, and later messages go on.
    """
    hook = Webhook(answers=[(410, {}), (204, {})])
    gone = '[notify.gone]\nkind = "webhook"\nurl = "http://127.0.0.1:9/"\ngive_up_s = 4\n'
    configure(notifying, HOOK + gone, url=hook.url)
    with hook, notifying.serving():
        notifying.eventually(lambda: len(lines(notifying, "notify_failed")) == 3)
        ends = {
            x["receiver"]: x for x in lines(notifying, "notify_failed") if x["level"] == "error"
        }
        assert ends["hook"]["tries"] == 1
        assert ends["gone"]["tries"] > 1
        notifying.eventually(lambda: not waiting(notifying, "gone"))
        for line in ends.values():
            assert f"batchd notify --test {line['receiver']}" in line["mend"]
        drop(notifying, "b", "true")
        notifying.eventually(lambda: len(hook.posts) == 2)
    assert not waiting(notifying, "hook")


def test_a_password_that_a_server_repeats_is_in_no_line(notifying: Spool) -> None:
    """Made of words, as it is or as its address has it: neither log nor `--test` shows one."""
    mailbox(notifying)
    url = notifying.folder / "mail.url"
    url.write_text(url.read_text().replace(PASSWORD, "correct-horse%2Bbattery"))
    said = b"no correct-horse+battery, no correct-horse%2Bbattery, no stable-door"
    hook = Webhook(answers=[(403, {})], said=said)
    configure(notifying, MAIL + HOOK, url=f"{hook.url}?token=stable-door")
    with hook, notifying.serving():
        notifying.eventually(
            lambda: [x for x in lines(notifying, "notify_failed") if x["receiver"] == "hook"]
        )
        tried = notifying.batchd("notify", "--test", "hook").stdout
    for shown in ((notifying.folder / "daemon.log").read_text(), tried):
        assert "HTTP 403 no [secret], no [secret], no [secret]" in shown
        assert "horse" not in shown
        assert "door" not in shown


@pytest.mark.parametrize("kind", ["webhook", "apprise"])
def test_no_redirect_is_followed(notifying: Spool, kind: str) -> None:
    """A server cannot send a message on to another."""
    other = Webhook()
    hook = Webhook(answers=[(307, {"location": other.url})])
    url = hook.url if kind == "webhook" else f"json://127.0.0.1:{hook.port}/chat/"
    configure(notifying, f'[notify.me]\nkind = "{kind}"\nurl = "{url}"\n')
    with hook, other:
        assert "failed me: " in notifying.batchd("notify", "--test", "me").stdout
    assert len(hook.posts) == 1
    assert not other.posts


@pytest.mark.parametrize("kind", ["webhook", "apprise", "mail"])
def test_certificates_are_checked(
    notifying: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """One that no authority of the machine vouches for gets neither message nor password."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key),
            *("-out", certificate, "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
        ],
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    hook, mail = Webhook(tls=tls), MailServer()
    mail.options = {"authenticator": mail.login, "tls_context": tls}
    url = {
        "webhook": f"https://localhost:{hook.port}/notified",
        "apprise": f"jsons://localhost:{hook.port}/chat/",
        "mail": f"mailtos://batchd:{PASSWORD}@localhost:{mail.port}/?from=b@example.com",
    }[kind]
    way = "webhook" if kind == "webhook" else "apprise"
    configure(notifying, f'[notify.me]\nkind = "{way}"\nurl = "{url}"\n')
    with hook, mail:
        assert "failed me: " in notifying.batchd("notify", "--test", "me").stdout
        assert not (hook.posts or mail.mails or mail.logins)
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            monkeypatch.setenv(name, str(certificate))
        tried = notifying.batchd("notify", "--test", "me").stdout
    assert tried.startswith("ok "), tried
    assert len(hook.posts) + len(mail.mails) == 1


@pytest.mark.parametrize(
    ("receiver", "why"),
    [
        (
            'url = "mailto://me:correct-horse@mail.example.com/"',
            "begin its address with mailtos://",
        ),
        (
            'url = "mailtos://me:correct-horse@mail.example.com/?mode=insecure"',
            "begin its address with mailtos://, without mode=insecure",
        ),
        (
            'url = "mailto://me:correct-horse@localhost/?from=a@b.co&smtp=mail.example.com"',
            "begin its address with mailtos://",
        ),
        ('url = "mailtos://me:pass-word@mail.example.com/?verify=no"', "take verify=no out"),
        ('url = "json://me:correct-horse@example.com/"', "begin its address with jsons://"),
        ('url = "json://example.com/?+X-Token=correct-horse"', "begin its address with jsons://"),
        ('url = "jsons://example.com/?redirect=yes"', "take redirect=yes out"),
        (
            'url = "http://example.com/"\nheaders = { X-Token = "correct-horse" }',
            "write https:// in its address",
        ),
    ],
)
def test_what_would_be_given_away_is_refused(notifying: Spool, receiver: str, why: str) -> None:
    """`batchd check` says what to write instead; nothing is sent."""
    kind = "webhook" if "http:" in receiver else "apprise"
    configure(notifying, f'[notify.me]\nkind = "{kind}"\n{receiver}\n')
    checked = json.loads(notifying.batchd("check", "--offline", "--json").stdout)
    (found,) = (line for line in checked if line["what"] == "notify me")
    assert found["verdict"] == "failed"
    assert why in found["detail"]
    tried = notifying.batchd("notify", "--test", "me").stdout
    assert why in tried
    assert "correct" not in tried + found["detail"]


def test_one_that_hangs_hurts_no_other(notifying: Spool) -> None:
    """A webhook that never answers and a command that never ends hold up neither tasks,
    nor other receivers, nor the daemon's end.
    """
    hook, good = Webhook(before=lambda: time.sleep(PATIENCE_S)), Webhook()
    configure(
        notifying,
        """
[notify.hangs]
kind = "webhook"
url = "@hangs@"
[notify.sleeps]
kind = "command"
command = ["sh", "-c", "sleep 4242 & sleep 4242"]
timeout_s = 1
[notify.good]
kind = "webhook"
url = "@good@"
""",
        hangs=hook.url,
        good=good.url,
    )
    with hook, good, notifying.serving() as daemon:
        notifying.eventually(lambda: hook.posts and good.posts)
        drop(notifying, "b", *["true"] * 6)
        notifying.eventually((notifying.folder / "outbox/b/summary.json").exists)
        assert notifying.result("b", "summary")["counts"]["completed"] == 6
        notifying.eventually(lambda: len(good.posts) == 2)
        notifying.eventually(
            lambda: [x for x in lines(notifying, "notify_failed") if x["receiver"] == "sleeps"]
        )
        assert "killed after 1 s" in lines(notifying, "notify_failed")[0]["message"]
        begun = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(PATIENCE_S) == 0
        assert time.monotonic() - begun < 60
    assert not _running("sleep 4242")
    # It is kept for the next daemon.
    assert waiting(notifying, "hangs")


def test_what_has_arrived_is_not_sent_again(notifying: Spool) -> None:
    """A receiver that has taken a message, and then never finishes its answer, gets it once."""
    hook = Webhook(answers=[(200, {})], promised=9)
    configure(notifying, HOOK + "timeout_s = 1.5\n", url=hook.url)
    with hook, notifying.serving():
        notifying.eventually(
            lambda: lines(notifying, "notified") or lines(notifying, "notify_failed")
        )
    assert not lines(notifying, "notify_failed")
    assert len(hook.posts) == 1
    assert not waiting(notifying, "hook")


def test_a_command_gets_as_much_as_a_variable_holds() -> None:
    """A long message in letters of three bytes reaches a command too:
    what is too much for a variable stands on its input.
    """
    script = 'printf %s "$BATCHD_TEXT" | wc -c; wc -c'
    settings = ReceiverSection(kind="command", command=("sh", "-c", script))
    target = ReceiverTarget(name="me", settings=settings, environ={}, masker=Masker())
    notice = replace(messages.compose([messages.test("me")], ulid()), text="漢" * 60_000)
    first, second = re.findall(r"\d{2,}", asyncio.run(channels.send(target, notice)))
    assert 65_533 <= int(first) <= 65_536
    assert int(second) > 180_000


def test_a_command_gets_each_event_by_itself(notifying: Spool) -> None:
    """Two batches that end together are two messages to it, in order;
    to others they are one, some time later. What an earlier version left in files comes first.
    """
    heard = notifying.folder / "heard"
    script = 'printf "%s %s\\n" "$BATCHD_BATCH" "$(cat)" >> "$0"'
    batches = [Batch(name=n, claim="", outbox="/o", request="r", received_at=1e9) for n in "ab"]
    events = [messages.batch_refused(batch, [], 1e9) for batch in batches]
    left = notifying.folder / ".batchd/notify"
    for name in ("tool", "hook"):
        (left / name).mkdir(mode=0o700, parents=True)
        tried = messages.compose(events[:1], "01JQZ3XJ6V0000000000000000")
        (left / name / f"{tried.id}.tried.json").write_bytes(msgspec.json.encode(tried))
        rest = messages.compose(events[1:], ulid())
        (left / name / f"{rest.id}.json").write_bytes(msgspec.json.encode(rest))
    hook = Webhook()
    configure(
        notifying,
        HOOK + f"[notify.tool]\nkind = 'command'\ncommand = {['sh', '-c', script, str(heard)]}\n",
        url=hook.url,
    )
    with hook, notifying.serving():
        notifying.eventually(lambda: _of(hook, "daemon_started"))
        notifying.eventually(lambda: heard.exists() and heard.read_text().count("\n") == 3)
        assert not left.exists()
    found = [line.split(" ", 1) for line in heard.read_text().splitlines()]
    assert [name for name, _ in found] == ["a", "b", ""]
    assert [[e["event"] for e in json.loads(text)["events"]] for _, text in found] == [
        ["batch_rejected"],
        ["batch_rejected"],
        ["daemon_started"],
    ]
    first, second = hook.posts
    assert first.headers["webhook-id"] == "01JQZ3XJ6V0000000000000000"
    assert [e["event"] for e in first.notification["events"]] == ["batch_rejected"]
    assert [e["event"] for e in second.notification["events"]] == [
        "batch_rejected",
        "daemon_started",
    ]


def _running(command: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().replace(b"\0", b" ").strip() == command.encode():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.long
def test_five_hundred_batches_are_no_flood(notifying: Spool) -> None:
    """At two messages a minute 500 batches in three waves come in two
    and one that waits, and every one of them is named or counted.
    """
    hook = Webhook()
    configure(
        notifying,
        """
[notify.hook]
kind = "webhook"
url = "@url@"
max_per_minute = 2
on = ["batch_rejected", "batch_completed"]
""",
        url=hook.url,
    )
    begun = time.monotonic()
    with hook, notifying.serving():
        for wave, count in enumerate((400, 90)):
            for number in range(count):
                path = notifying.folder / f".{wave}-{number}.json"
                path.write_text('{"tasks": []}')
                path.rename(notifying.folder / "inbox" / path.name[1:])
            notifying.eventually(lambda: _ended(notifying) == sum((400, 90)[: wave + 1]))  # noqa: B023 (called at once)
            notifying.eventually(lambda: not waiting(notifying, "hook") and len(hook.posts) > wave)  # noqa: B023 (as above)
        for number in range(10):
            drop(notifying, f"c{number}", "true")
        notifying.eventually(lambda: _ended(notifying) == 500)
        notifying.eventually(lambda: waiting(notifying, "hook") or len(hook.posts) > 2)
        time.sleep(3)  # whatever comes now would be too much
        assert 2 <= len(hook.posts) <= 2 * (1 + (time.monotonic() - begun) // 60)
        messages = [post.notification for post in hook.posts]
        counts = Counter(json.loads(left.event)["event"] for left in waiting(notifying, "hook"))
        for message in messages:
            counts.update(event["event"] for event in message["events"])
            counts.update(message["left_out"])
            assert len(message["events"]) <= 50
            assert len(message["text"]) < 30_000
    assert counts == {"batch_rejected": 490, "batch_completed": 10}
    assert messages[0]["subject"].endswith(" more")


def _ended(spool: Spool) -> int:
    return len(list((spool.folder / "outbox").glob("*/summary.json")))


def test_a_crash_loses_no_message(notifying: Spool) -> None:
    """What waited when the daemon was killed arrives from the next one, under its id;
    and that one reports the crash.
    """
    hook = Webhook()
    configure(notifying, HOOK + SLEEPER, url=hook.url)
    with notifying.serving() as daemon:
        notifying.eventually(lambda: _running("sleep 4243"))
        drop(notifying, "b", "false")
        notifying.eventually(
            lambda: [x for x in waiting(notifying, "hook") if "batch_failed" in x.event]
        )
        notifying.eventually(lambda: lines(notifying, "notify_failed"))
        daemon.kill()
        daemon.wait(PATIENCE_S)
        # What a command of the operator's started does not outlive the daemon.
        notifying.eventually(lambda: not _running("sleep 4243"))
        tried = waiting(notifying, "hook")[0].message
    config = notifying.folder / "config.toml"
    config.write_text(config.read_text().replace(SLEEPER, ""))
    with hook, notifying.serving():
        notifying.eventually(lambda: any(event["event"] == "batch_failed" for event in hook.events))
        notifying.eventually(lambda: sum(e["event"] == "daemon_started" for e in hook.events) == 2)
        notifying.eventually(lambda: not waiting(notifying, "hook"))
    assert hook.posts[0].headers["webhook-id"] == tried
    starts = [event["daemon"] for event in hook.events if event["event"] == "daemon_started"]
    assert [start["after_crash"] for start in starts] == [False, True]
    assert [event["batch"]["name"] for event in hook.events if event["batch"]] == ["b"]


def test_money_and_providers(notifying: Spool) -> None:
    """A batch's budget is reported once, however many tasks it stops;
    the day's too; a provider when it is parked and when it goes on.
    """
    hook = Webhook()
    configure(notifying, HOOK + "[budget]\nper_day_usd = 0.03\n", url=hook.url)
    with hook, notifying.serving():
        drop(notifying, "dear", *["true"] * 4, budget_usd=0.000001)
        notifying.eventually(lambda: _of(hook, "batch_failed"))
        (budget,) = _of(hook, "budget_reached")
        assert (budget["budget"]["scope"], budget["budget"]["batch"]) == ("batch", "dear")
        assert "the batch's budget of $0.000001 is reached" in budget["message"]
        drop(notifying, "more", *["true"] * 20)
        notifying.eventually(lambda: len(_of(hook, "budget_reached")) == 2)
        day = _of(hook, "budget_reached")[1]
        assert day["budget"] == {"scope": "day", "batch": None}
        assert "batchd tune budget.per_day_usd" in day["how_to_go_on"]
        notifying.batchd("tune", "budget.per_day_usd=9")
        notifying.eventually(lambda: _of(hook, "batch_completed"))
    assert len(_of(hook, "budget_reached")) == 2


def test_a_provider_that_comes_and_goes_and_receivers_that_change(notifying: Spool) -> None:
    """A parked provider is reported once, with the fix, and again when it answers.

    SIGHUP adds, changes and drops receivers, with what waits for them.
    """
    hook, later, gone = Webhook(), Webhook(), Webhook()
    path = notifying.folder / "config.toml"
    right = path.read_text()
    base_url = right.partition('base_url = "')[2].partition('"')[0]
    wrong = right.replace(base_url, f"http://127.0.0.1:{free_port()}/v1")
    path.write_text(f"{wrong}probe_s = 0.2\nmax_probe_s = 0.2\n")
    going = '[notify.gone]\nkind = "webhook"\nurl = "@gone@"\n'
    configure(notifying, HOOK + going, url=hook.url, gone=gone.url)
    with hook, later, notifying.serving() as daemon:
        drop(notifying, "b", "true")
        notifying.eventually(lambda: _of(hook, "provider_parked"))
        notifying.eventually(
            lambda: len(lines(notifying, "provider_parked")) > 3
        )  # tries that failed
        notifying.eventually(lambda: waiting(notifying, "gone"))
        path.write_text(right)
        configure(notifying, HOOK + HOOK.replace("hook]", "later]"), url=hook.url)
        path.write_text(
            path.read_text().replace(
                f'later]\nkind = "webhook"\nurl = "{hook.url}',
                f'later]\nkind = "webhook"\nurl = "{later.url}',
            )
        )
        daemon.send_signal(signal.SIGHUP)
        notifying.eventually(lambda: lines(notifying, "config_reloaded"))
        notifying.batchd("resume", "--provider", "standin")
        notifying.eventually(lambda: _of(hook, "batch_completed") and _of(later, "batch_completed"))
        notifying.eventually(lambda: not waiting(notifying, "gone"))
    (parked,), (resumed,) = _of(hook, "provider_parked"), _of(hook, "provider_resumed")
    assert parked["provider"]["name"] == resumed["provider"]["name"] == "standin"
    assert parked["provider"]["since"] == resumed["provider"]["since"]
    assert "batchd resume --provider standin" in parked["how_to_go_on"]
    assert not _of(later, "provider_parked")
    assert not _of(later, "daemon_started")


def test_what_is_wrong_is_reported_before_and_without_secrets(notifying: Spool) -> None:
    """`batchd check` names what would keep messages back, and sends nothing;
    `--test` shows what came back; a missing package ends the start.
    """
    hook = Webhook(answers=[(401, {"x-why": KEY})])
    configure(notifying, HOOK + CHAT + TOOL, url=hook.url, chat=1, home=notifying.folder)
    configure(notifying, '[notify.lost]\nkind = "webhook"\nurl_file = "lost.url"\n')
    configure(notifying, '[notify.none]\nkind = "command"\ncommand = ["no-such-program"]\n')
    with hook:
        lines = json.loads(notifying.batchd("check", "--offline", "--json").stdout)
        verdicts = {x["what"]: x for x in lines if x["what"].startswith("notify ")}
        assert {name.split()[1]: x["verdict"] for name, x in verdicts.items()} == {
            "lost": "failed",
            "none": "failed",
        }
        assert "lost.url" in verdicts["notify lost"]["detail"]
        assert not hook.posts
        tried = notifying.batchd("notify", "--test", "hook")
        assert (tried.returncode, tried.stdout) == (3, "failed hook: HTTP 401\n")
        assert notifying.batchd("notify", "--test", "missing").returncode == 2
        assert "exit code 127" in notifying.batchd("notify", "--test", "none").stdout
        assert "cannot be read" in notifying.batchd("notify", "--test", "lost").stdout
        assert "1" in notifying.batchd("notify", "--test", "chat").stdout
        shown = notifying.batchd("notify").stdout
        assert [line.split()[:3] for line in shown.splitlines()[1:]] == [
            ["hook", "webhook", "0"],
            ["chat", "apprise", "0"],
            ["tool", "command", "0"],
            ["lost", "webhook", "0"],
            ["none", "command", "0"],
        ]
    # As if the extra were not there.
    (notifying.folder / "sitecustomize.py").write_text(
        "import sys, importlib.machinery as m\n"
        "class P(m.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        "        return None if name == 'apprise' else super().find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(m.PathFinder)] = P\n"
    )
    paths = f"{notifying.folder}:{notifying.environment['PYTHONPATH']}"
    ran = subprocess.run(
        notifying.command("serve"),
        env={**notifying.environment, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 3
    assert "[notify.chat]: the package apprise is not installed; install it: " in ran.stderr
    assert " -m pip install " in ran.stderr


def _of(hook: Webhook, event: str) -> list[dict[str, Any]]:
    return [found for found in hook.events if found["event"] == event]
