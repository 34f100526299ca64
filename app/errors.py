"""The service's errors: what a request can be answered with when it cannot be done.

ServiceError                        code, HTTP status, and the text that becomes `application/problem+json`
├── RequestError                    the caller asked wrongly
│   ├── InvalidRequest       422
│   ├── MalformedRequest     400
│   ├── Unauthenticated      401
│   ├── ForeignOrigin        403    (only where no API key is set)
│   ├── NotFound             404
│   ├── Conflict             409    (the code says which: JOB_FINISHED, NO_CALLBACKS, ...)
│   ├── TooLarge             413
│   ├── UnsupportedMedia     415
│   └── RangeNotSatisfiable  416
└── MachineError                    the machine cannot, now
    ├── InternalError        500    (our bug; its details go to the log only)
    ├── StoreUnavailable     503
    └── StoreFull            507

How a *job* ends is not an HTTP error: see `app.jobs.outcome`.
"""

from __future__ import annotations

from typing import ClassVar


class ServiceError(Exception):
    """A refusal that says what was expected, what came, and what to try next."""

    code: ClassVar[str] = "SERVICE_ERROR"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "The request could not be carried out"

    def __init__(
        self,
        message: str,
        *,
        expected: str | None = None,
        received: str | None = None,
        hint: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.expected = expected
        self.received = received
        self.hint = hint
        self.problem_code = code or self.code
        self.headers = headers or {}

    def __str__(self) -> str:
        """All of it, for logs and for a start that failed."""
        return "; ".join(part for part in (self.message, self.received, self.hint) if part)


class RequestError(ServiceError):
    """The caller asked wrongly; the same request will be refused again."""

    status = 400


class InvalidRequest(RequestError):
    code, status, title = "INVALID_REQUEST", 422, "A value in the request is not acceptable"


class MalformedRequest(RequestError):
    code, status, title = "MALFORMED_REQUEST", 400, "The request could not be read"


class Unauthenticated(RequestError):
    code, status, title = "UNAUTHENTICATED", 401, "No valid API key came with the request"


class ForeignOrigin(RequestError):
    code, status, title = "FOREIGN_ORIGIN", 403, "A page of another site may not drive this service"


class NotFound(RequestError):
    code, status, title = "NOT_FOUND", 404, "There is no such thing here"


class Conflict(RequestError):
    code, status, title = "CONFLICT", 409, "The request does not fit the present state"


class TooLarge(RequestError):
    code, status, title = "TOO_LARGE", 413, "The body is larger than this service takes"


class UnsupportedMedia(RequestError):
    code, status, title = "UNSUPPORTED_MEDIA_TYPE", 415, "The body is of a type that this route does not take"


class RangeNotSatisfiable(RequestError):
    code, status, title = "RANGE_NOT_SATISFIABLE", 416, "The file does not have that range"


class MachineError(ServiceError):
    """The machine cannot, now; the same request may succeed later."""

    status = 503


class InternalError(MachineError):
    code, status, title = "INTERNAL_ERROR", 500, "The service made a mistake"


class StoreUnavailable(MachineError):
    code, status, title = "STORE_UNAVAILABLE", 503, "A store that this needs does not answer"


class StoreFull(MachineError):
    code, status, title = "STORE_FULL", 507, "There is no room left to store this"
