"""No JSON body may fill the memory: everything but an upload is bounded."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import TooLarge

MAX_JSON_BYTES = 1024 * 1024
UPLOADS_PATH = "/optimizing/uploads"


class BodyLimit:
    """Answers 413 as soon as a body is longer than MAX_JSON_BYTES; uploads have a limit of their own.

    FastAPI turns every error of reading a body into a 400, but for HTTPException: the refusal travels as its cause.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] == UPLOADS_PATH:
            await self._app(scope, receive, send)
            return
        got = 0

        async def bounded() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > MAX_JSON_BYTES:
                raise HTTPException(TooLarge.status) from TooLarge(
                    "the request's body is too large",
                    expected=f"at most {MAX_JSON_BYTES} bytes of JSON",
                    received="more",
                    hint="files go to POST /optimizing/uploads",
                )
            return message

        await self._app(scope, bounded, send)
