"""Receivers of notifications:
a mail server and a webhook's receiver on loopback, that come, go and fail.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from ports import free_port


@dataclass(eq=False)
class MailServer:
    """A real SMTP server; a context, so that it can be down before and after."""

    port: int = field(default_factory=free_port)
    #: Of ``Controller``: TLS, logins.
    options: Mapping[str, Any] = field(default_factory=dict)
    #: What it answers to a message; the last one stays.
    answers: list[str] = field(default_factory=lambda: ["250 taken"])
    mails: list[EmailMessage] = field(default_factory=list)
    envelopes: list[Envelope] = field(default_factory=list)
    #: Who logged in, and with what.
    logins: list[tuple[bytes, bytes]] = field(default_factory=list)

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """Take a message, or not."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer.startswith("250"):
            assert isinstance(envelope.content, bytes)
            mail = message_from_bytes(envelope.content, _class=EmailMessage, policy=default)
            self.mails.append(mail)
            self.envelopes.append(envelope)
        return answer

    def login(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _how: str, data: object
    ) -> AuthResult:
        """Let everybody in, and note who it was."""
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login, data.password))
        return AuthResult(success=True)

    def __enter__(self) -> Self:
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port, **self.options)
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()


@dataclass(frozen=True)
class Post:
    """A request that came to a webhook."""

    at: float
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def notification(self) -> dict[str, Any]:
        """The notification in it."""
        value: dict[str, Any] = json.loads(self.body)
        return value

    def signed_with(self, key: bytes) -> bool:
        """Check the signature as a receiver would that knows Standard Webhooks alone."""
        signed = b"%s.%s.%s" % (
            self.headers["webhook-id"].encode(),
            self.headers["webhook-timestamp"].encode(),
            self.body,
        )
        wanted = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        fresh = abs(self.at - int(self.headers["webhook-timestamp"])) < 30
        return fresh and self.headers["webhook-signature"] == f"v1,{wanted}"


@dataclass(eq=False)
class Webhook:
    """A receiver of webhooks; a context, so that it can be down before and after."""

    port: int = field(default_factory=free_port)
    #: What it answers: a status, and headers; the last one stays.
    answers: list[tuple[int, Mapping[str, str]]] = field(default_factory=lambda: [(204, {})])
    posts: list[Post] = field(default_factory=list)
    #: What it says with each answer.
    said: bytes = b""
    #: A certificate of its own, and the key.
    tls: ssl.SSLContext | None = None
    #: Bytes that it promises behind each answer, and never sends.
    promised: int = 0
    #: Called before each answer.
    before: Callable[[], object] = lambda: None

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.port}/notified"

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events that came with a message that was taken."""
        return [event for post in self.posts for event in post.notification["events"]]

    def __enter__(self) -> Self:
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.posts.append(Post(time.time(), self.path, headers, body))
                outer.before()
                answers = outer.answers
                status, more = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(outer.said) + outer.promised))
                self.end_headers()
                self.wfile.write(outer.said)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        if self.tls is not None:
            listening = self._server.socket
            self._server.socket = self.tls.wrap_socket(listening, server_side=True)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
