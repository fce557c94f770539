"""Notifications, as people and programs read them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import msgspec
import pytest

from batchd.daemon.listeners import StartReport
from batchd.errors import DeliveryError, Problem
from batchd.masking import Masker
from batchd.notify import messages
from batchd.notify.channels import signed
from batchd.notify.format import BatchV1, EventV1, FailuresV1
from batchd.records import Batch, Cause, Parking, Reason, Scope, TaskStatus

NOW = 1_800_000_000.0
ULID = "01JQZ3XJ6V0000000000000000"
EVIL = "no\r\nBcc: all@example.com\r\n\r\nTo go on: rm -rf / \x1b[31m\u202e s3cret-key-1"


def _parked(said: str, name: str = "openai") -> EventV1:
    parking = Parking(
        scope=Scope.PROVIDER, name=name, cause=Cause.AUTH, message=said, since=NOW - 90
    )
    made = messages.provider_parked(parking, "fix the cause, then `batchd resume`", NOW)
    return messages.clean(made, Masker(["s3cret-key-1"]))


def _refused(number: int) -> EventV1:
    batch = Batch(name=f"b{number}", claim="", outbox="/o", request="request.json", received_at=NOW)
    return messages.batch_refused(batch, [Problem("tasks[0]", "no such key")], NOW)


def test_only_batchd_writes_into_a_message() -> None:
    """What a provider says stays on one line of ours, and in the body:
    a subject is one line, and no control character, no secret gets out.
    """
    notice = messages.compose([_parked(EVIL, name="x\r\nBcc: all@example.com")], ULID)
    assert "\n" not in notice.subject
    assert "\r" not in notice.subject
    text = notice.text
    ours = "To go on: fix the cause, then batchd resume"
    assert [x.strip() for x in text.splitlines() if x.lstrip().startswith("To go on")] == [ours]
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[secret]" in text
    assert "s3cret" not in f"{notice}"


def test_every_text_in_an_event_is_clean() -> None:
    """What is listed, the failures of tasks and the errors of a file,
    is without secrets and controls too, and can be written as JSON.
    """
    batch = Batch(name="b", claim="", outbox="/o", request="request.json", received_at=NOW)
    problem = Problem("tasks[0]", EVIL + "\ud800")
    refused = messages.clean(
        messages.batch_refused(batch, [problem], NOW), Masker(["s3cret-key-1"])
    )
    notice = msgspec.json.encode(messages.compose([refused], ULID)).decode()
    assert "s3cret" not in notice
    assert refused.batch is not None
    (error,) = refused.batch.errors
    assert error.startswith("tasks[0]: no Bcc: ")
    assert error.endswith("[secret]\\ud800")
    assert "\x1b" not in error


def test_a_password_that_is_a_word_of_ours_breaks_no_message() -> None:
    """What programs go by stays as it is documented, whatever the secrets are;
    texts for people are without them.
    """
    failed = FailuresV1(
        status=TaskStatus.TIMEOUT, reason=Reason.WALL_CLOCK, count=1, task="001", message="timeout"
    )
    batch = BatchV1(name="b", folder="/o/b", counts={TaskStatus.TIMEOUT: 1}, failures=(failed,))
    event = replace(messages.budget_spent("b", "budget", NOW), batch=batch)
    (clean,) = messages.compose([messages.clean(event, Masker(["budget", "timeout"]))], ULID).events
    assert clean.event == "budget_reached"
    assert clean.batch == replace(batch, failures=(replace(failed, message="[secret]"),))
    assert clean.message == "[secret]"


def test_of_many_the_most_important_are_named_and_the_rest_counted() -> None:
    """No event is lost from the count, and no message grows without bound."""
    daemon = messages.daemon_started(StartReport(after_crash=True, batches=2, tasks=7), NOW)
    events = [_refused(n) for n in range(301)]
    folded = messages.compose([*events, daemon, _parked("no")], ULID)
    counts = Counter(event.event for event in folded.events) + Counter(folded.left_out)
    assert counts == {"batch_rejected": 301, "daemon_started": 1, "provider_parked": 1}
    assert len(folded.events) == messages.MOST_EVENTS
    assert "tasks for provider openai wait: auth, and 302 more" in folded.subject
    assert folded.text.index("provider openai") < folded.text.index("batch b0")
    assert "… and 253 more: 252 batch rejected, 1 daemon started" in folded.text
    assert messages.compose(events[:2], ULID).subject.endswith(", and 1 more")
    # Version 0.2.0 left such ones.
    older = replace(daemon, event="model_retiring")
    assert "2 model retiring" in messages.compose([older] * 51 + [daemon], ULID).text


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The example of the convention comes out as it is written there;
    a key without its prefix is taken as it stands.
    """
    # From the reference libraries' own tests.
    key, own, at = (
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
    )
    body = b'{"test": 2432232314}'
    headers = signed(own, at, body, key)
    assert headers == {
        "webhook-id": own,
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    assert signed(own, at, body, "plain words")["webhook-signature"] != headers["webhook-signature"]
    assert "webhook-signature" not in signed(own, at, body, "")
    with pytest.raises(DeliveryError, match="not base64") as caught:
        signed(own, at, body, "whsec_not base64!")
    assert caught.value.final
