"""What stands before every request: limits of size and time, the token, and measurements."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Observe = Callable[[str, str, int, float], None]

BODY_SECONDS = 10.0
LOCAL_NAMES = ("localhost",)
PUBLIC = ("/", "/page.js", "/page.css", "/healthz")
OTHER = "other"  # the path of requests that no route takes, in measurements


def is_local(host: str) -> bool:
    """Whether a name or an address is of this machine alone."""
    try:
        return host in LOCAL_NAMES or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """Reads the body of a request before anything else does, refuses what is too large, too slow or without the token,
    and tells of each answer. Without a token it answers to names of this machine alone, and to no page of another, so
    that no page that a browser shows can use the server.

    Args:
        app: the server.
        most_bytes: the largest body by path, `""` for the other paths.
        token: what `Authorization: Bearer <token>` has to hold; None: nothing.
        observe: is told method, path of the route, status and seconds.
    """

    def __init__(self, app: App, most_bytes: dict[str, int], token: str | None, observe: Observe) -> None:
        self.app, self.most_bytes, self.token, self.observe = app, most_bytes, token, observe

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refused, body = self._refused(scope), b""
            if not refused:
                refused, body = await self._in_time(scope, receive)
            if refused:
                await _answer(sending, *refused)
            else:
                await self.app(scope, _given(body, receive), sending)
        finally:
            path = getattr(scope.get("route"), "path", OTHER)
            self.observe(scope["method"], path, status, time.perf_counter() - started)

    def _refused(self, scope: Any) -> tuple[int, str] | None:
        """Why a request is refused before its body is read, if it is."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limit(scope):
            return 413, "The body is too large."
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and media_type != b"application/json":
            return 415, "Send JSON, with `Content-Type: application/json`."
        if self.token is None:
            return self._foreign(headers)
        given = headers.get(b"authorization", b"")
        if scope["path"] in PUBLIC:
            return None
        if not hmac.compare_digest(given, b"Bearer " + self.token.encode()):
            return 401, "Give the server's token as `Authorization: Bearer <token>`."
        return None

    @staticmethod
    def _foreign(headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        """Why a request is refused that names another host, or comes from a page of one, if it does."""
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if not is_local(urlsplit(f"//{host}").hostname or ""):
            return 403, "Without a token the server answers to names of its own machine alone."
        if origin and urlsplit(origin).netloc != host:
            return 403, "Without a token the server answers no page of another host."
        return None

    async def _in_time(self, scope: Any, receive: Receive) -> tuple[tuple[int, str] | None, bytes]:
        """Why a body is refused, if it is, and the body."""
        try:
            body = await asyncio.wait_for(self._body(scope, receive), BODY_SECONDS)
        except TimeoutError:
            return (408, f"The body did not come within {BODY_SECONDS:g} seconds."), b""
        return (None, body) if body is not None else ((413, "The body is too large."), b"")

    def _limit(self, scope: Any) -> int:
        return self.most_bytes.get(scope["path"], self.most_bytes[""])

    async def _body(self, scope: Any, receive: Receive) -> bytes | None:
        """The whole body, None of one that is too large."""
        parts: list[bytes] = []
        size, limit = 0, self._limit(scope)
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


def _given(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read, and then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return waiting.pop() if waiting else await receive()

    return give


async def _answer(send: Send, status: int, sentence: str) -> None:
    content = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
