"""Every error as `application/problem+json` (RFC 9457) with a stable `code`."""

from __future__ import annotations

import difflib
import http
import logging
from typing import Any, get_type_hints

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app.errors import ForeignOrigin, InternalError, MalformedRequest, ServiceError, StoreUnavailable, Unauthenticated

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SEC = 5


class FieldFault(BaseModel):
    """One value of the request that is not acceptable."""

    field: str = Field(examples=["parameters.input_size"])
    message: str
    received: str | None = None
    did_you_mean: str | None = None


class Problem(BaseModel):
    """What went wrong, and what to do about it."""

    type: str = Field("about:blank", description="Names the code; the code is what to rely on.")
    title: str
    status: int
    code: str = Field(examples=["INVALID_REQUEST"])
    detail: str
    expected: str | None = None
    received: str | None = None
    hint: str | None = None
    errors: list[FieldFault] | None = None
    instance: str | None = None


def declared(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may refuse in these ways, besides those that every route has."""
    every: tuple[type[ServiceError], ...] = (*errors, Unauthenticated, ForeignOrigin, StoreUnavailable, InternalError)
    return described(*every)


def described(*errors: type[ServiceError]) -> dict[int | str, dict[str, Any]]:
    """The `responses` of exactly these errors."""
    return {
        error.status: {"model": Problem, "description": error.title, "content": {MEDIA_TYPE: {}}} for error in errors
    }


def install(app: FastAPI) -> None:
    """Makes every error of the application a problem document, and says so in its OpenAPI document."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        return app.openapi_schema or _corrected(made())

    app.openapi = openapi  # type: ignore[method-assign]
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _unforeseen)


def _corrected(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document, true to what goes out.

    Every error is a problem document, where FastAPI says `application/json`, or what a success is; and `itemSchema` is
    a word of OpenAPI 3.2 in a document that calls itself 3.1.
    """
    for path in document["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if int(status) >= http.HTTPStatus.BAD_REQUEST:
                    response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
                for media in response.get("content", {}).values():
                    if "itemSchema" in media:
                        media["schema"] = media.pop("itemSchema")
    return document


def problem_of(error: ServiceError, instance: str, errors: list[FieldFault] | None = None) -> Problem:
    return Problem(
        type=f"urn:optimizing:problem:{error.problem_code.lower()}",
        title=error.title,
        status=error.status,
        code=error.problem_code,
        detail=error.message,
        expected=error.expected,
        received=error.received,
        hint=error.hint,
        errors=errors,
        instance=instance,
    )


def render(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    content = problem.model_dump(mode="json", exclude_none=True)
    return JSONResponse(content, problem.status, headers, media_type=MEDIA_TYPE)


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)  # noqa: S101 - the handler is registered for nothing else
    headers = dict(error.headers)
    if error.status == StoreUnavailable.status:
        headers.setdefault("Retry-After", str(RETRY_AFTER_SEC))
    return render(problem_of(error, request.url.path), headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    faults = [_fault(request, fault) for fault in error.errors()]
    unreadable = any(fault["type"] == "json_invalid" for fault in error.errors())
    status, code = (400, "MALFORMED_REQUEST") if unreadable else (422, "INVALID_REQUEST")
    problem = Problem(
        type=f"urn:optimizing:problem:{code.lower()}",
        title="The request could not be read" if unreadable else "A value in the request is not acceptable",
        status=status,
        code=code,
        detail="; ".join(f"{fault.field}: {fault.message}" for fault in faults[:5]),
        errors=faults,
        hint="GET /optimizing/kinds shows each kind's parameters with an example",
        instance=request.url.path,
    )
    return render(problem)


def _fault(request: Request, fault: dict[str, Any]) -> FieldFault:
    place = [str(part) for part in fault["loc"]]
    field = ".".join(place[1:]) or place[0]
    if fault["type"] == "extra_forbidden":
        known = _known_names(request, place[1:-1])
        nearest = difflib.get_close_matches(place[-1], known, n=1)
        return FieldFault(
            field=field,
            message=f"unknown field; known are {', '.join(known)}" if known else "unknown field",
            did_you_mean=nearest[0] if nearest else None,
        )
    received = None if fault["type"] in {"missing", "json_invalid"} else repr(fault.get("input"))[:200]
    return FieldFault(field=field, message=str(fault["msg"]).removeprefix("Value error, "), received=received)


def _known_names(request: Request, path: list[str]) -> list[str]:
    """The fields of the body's model at a place within it."""
    endpoint = request.scope.get("endpoint")
    model = get_type_hints(endpoint).get("body") if endpoint else None
    for part in path:
        info = getattr(model, "model_fields", {}).get(part)
        candidates = [info.annotation, *getattr(info.annotation, "__args__", ())] if info else []
        model = next((found for found in candidates if hasattr(found, "model_fields")), None)
    return list(getattr(model, "model_fields", {}))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101
    if isinstance(error.__cause__, ServiceError):
        return await _service_error(request, error.__cause__)
    if error.status_code == MalformedRequest.status:
        return render(problem_of(MalformedRequest(str(error.detail)), request.url.path))
    phrase = http.HTTPStatus(error.status_code).phrase
    problem = Problem(
        title=phrase,
        status=error.status_code,
        code=phrase.upper().replace(" ", "_").replace("-", "_"),
        detail=str(error.detail),
        hint="GET /openapi.json lists every route" if error.status_code in {404, 405} else None,
        instance=request.url.path,
    )
    return render(problem, dict(error.headers or {}))


async def _client_gone(request: Request, _: Exception) -> JSONResponse:
    """Nobody reads this answer; but a connection that broke is no mistake of ours."""
    logger.info("%s %s: the client went away before its request was whole", request.method, request.url.path)
    return render(problem_of(MalformedRequest("the request ended before it was whole"), request.url.path))


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    ours = InternalError("the service made a mistake; its log says more", hint="report it with the time of the request")
    return render(problem_of(ours, request.url.path))
