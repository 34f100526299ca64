"""A thin client of the service's HTTP API, for the command line.

ClientError            what the caller cannot have, with the exit code that says so to a shell
├── Refused            the service understood and said no (4xx): the same request will be refused again
└── Unavailable        nobody answered, somebody else did, or the service itself is in trouble (5xx)
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

import httpx2

from app import __version__

FINAL_STATUSES = frozenset({"completed", "failed", "cancelled"})
CHUNK_BYTES = 1024 * 1024
ANSWER_SEC = 60.0
"""Longest silence of the service that is waited for; an event stream is pinged more often than that."""

TIMEOUT = httpx2.Timeout(ANSWER_SEC, connect=10)
THIS_MACHINE = {"localhost", "127.0.0.1", "::1"}
PATIENCE_SEC = 60.0
"""How long a broken event stream is taken up again before the service counts as gone."""

MAX_PAUSE_SEC = 5.0
PAGE_LIMIT = 200

Progress = Callable[[int, int], None]
"""Hears (bytes so far, bytes in all)."""


class ClientError(Exception):
    """What was wanted, what came and what to try, as the service or this client puts it."""

    exit_code: ClassVar[int] = 4

    def __init__(self, problem: dict[str, Any]) -> None:
        super().__init__(problem.get("detail") or problem.get("title") or "the request failed")
        self.problem = problem

    @property
    def code(self) -> str:
        return str(self.problem.get("code", "UNKNOWN"))


class Refused(ClientError):
    """A 4xx: the service will say the same to the same request."""

    exit_code: ClassVar[int] = 3


class Unavailable(ClientError):
    """No answer, an answer that is none of this service's, or a 5xx."""


@dataclass(frozen=True)
class Event:
    """One server-sent event of a job."""

    type: str
    data: dict[str, Any]
    id: str


@dataclass(frozen=True)
class JobName:
    """The `PID/OID` of a job."""

    pid: str
    oid: str

    def __str__(self) -> str:
        return f"{self.pid}/{self.oid}"

    @property
    def path(self) -> str:
        return f"/optimizing/jobs/{self.pid}/{self.oid}"


class Client:
    """Speaks to one service as one user. Every method raises Refused or Unavailable."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Raises ValueError for a URL that is none."""
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"expected the service's URL, such as http://127.0.0.1:8000, got {url!r}")
        self.url = url.rstrip("/")
        headers = {"user-agent": f"optimizing-cli/{__version__}", "accept": "application/json"}
        if key:
            headers["authorization"] = f"Bearer {key}"
        self._http = httpx2.Client(
            base_url=self.url,
            headers=headers,
            timeout=TIMEOUT,
            trust_env=parts.hostname not in THIS_MACHINE,  # no proxy leads back to this machine
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    # -- jobs -----------------------------------------------------------------------------------------------------
    def kinds(self) -> list[dict[str, Any]]:
        """Every kind of job that the service knows."""
        return list(self._json("GET", "/optimizing/kinds")["kinds"])

    def submit(self, action: str, body: dict[str, Any], idempotency_key: str | None = None) -> dict[str, Any]:
        headers = {"idempotency-key": idempotency_key} if idempotency_key else {}
        return self._json("POST", f"/optimizing/{quote(action, safe='')}", json=body, headers=headers)

    def job(self, name: JobName) -> dict[str, Any]:
        return self._json("GET", name.path)

    def jobs(self, limit: int, filters: dict[str, str]) -> dict[str, Any]:
        """The newest `limit` jobs, over as many pages as that takes."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page_params = {**filters, "limit": str(min(limit - len(found), PAGE_LIMIT))}
            page = self._json("GET", "/optimizing/jobs", params=page_params | ({"cursor": cursor} if cursor else {}))
            found += page["jobs"]
            cursor = page["next_cursor"]
            if cursor is None or len(found) >= limit:
                return {"jobs": found, "next_cursor": cursor}

    def cancel(self, name: JobName) -> dict[str, Any]:
        return self._json("POST", f"{name.path}/cancel")

    def retry(self, name: JobName) -> dict[str, Any]:
        return self._json("POST", f"{name.path}/retry")

    def is_ready(self) -> bool:
        """Whether the service can take jobs now."""
        try:
            self._json("GET", "/readyz")
        except Unavailable:
            return False
        return True

    # -- files ----------------------------------------------------------------------------------------------------
    def upload(self, path: Path, pid: str, name: str, on_progress: Progress) -> dict[str, Any]:
        """Streams a file to the service; the answer's `key` names it from then on."""
        with path.open("rb") as file:
            total = path.stat().st_size

            def chunks() -> Iterator[bytes]:
                sent = 0
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
                    sent += len(chunk)
                    on_progress(sent, total)

            return self._json(
                "POST",
                "/optimizing/uploads",
                params={"pid": pid, "name": name},
                content=chunks(),
                headers={"content-type": "application/octet-stream", "content-length": str(total)},
            )

    def artifacts(self, name: JobName) -> dict[str, Any]:
        return self._json("GET", f"{name.path}/artifacts")

    def read_artifact(self, name: JobName, artifact: str, start: int, etag: str | None) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of an artifact from `start` on; from 0 where the service holds another file by now."""
        headers = {"accept": "*/*"}
        if start:
            headers["range"] = f"bytes={start}-"
            if etag:
                headers["if-range"] = f'"{etag}"'
        path = f"{name.path}/artifacts/{quote(artifact)}"
        with self._answers(), self._http.stream("GET", path, headers=headers) as answer:
            if answer.status_code != httpx2.codes.TEMPORARY_REDIRECT:
                self._check(answer)
                yield from _pieces(answer, start)
                return
        if answer.headers.get("etag") != headers.pop("if-range", None):
            headers.pop("range", None)  # another file by now; the store has ETags of its own and could not tell
            start = 0
        yield from self._read_from_store(answer.headers.get("location", ""), headers, start)

    def _read_from_store(self, link: str, headers: dict[str, str], start: int) -> Iterator[tuple[int, bytes]]:
        """As `read_artifact`, from where the service sent us. Nothing that is meant for the service goes there."""
        host = urlsplit(link).hostname
        store, hint = f"the artifact store at {host}", "the service sent us there: look at its S3_PUBLIC_ENDPOINT"
        asked = httpx2.stream("GET", link, headers=headers, timeout=TIMEOUT, trust_env=host not in THIS_MACHINE)
        with _reaching(store, hint), asked as answer:
            if not answer.is_success:
                raise Unavailable(
                    {
                        "code": "STORE_REFUSED",
                        "detail": f"{store} did not give the file",
                        "expected": "the file",
                        "received": f"HTTP {answer.status_code}",
                        "hint": hint,
                    }
                )
            yield from _pieces(answer, start)

    # -- following ------------------------------------------------------------------------------------------------
    def events(self, name: JobName) -> Iterator[Event]:
        """What happens to a job until it has ended; a stream that breaks is taken up where it broke."""
        last_id, pause, silent_since = "", 0.0, time.monotonic()
        while True:
            try:
                for event in self._events_once(name, last_id):
                    last_id, pause, silent_since = event.id or last_id, 0.0, time.monotonic()
                    yield event
                    if event.type == "state" and event.data.get("status") in FINAL_STATUSES:
                        return
                if self.job(name)["status"] in FINAL_STATUSES:
                    return
            except Unavailable:
                if time.monotonic() - silent_since > PATIENCE_SEC:
                    raise
            time.sleep(pause)
            pause = min(pause * 2 or 0.25, MAX_PAUSE_SEC)

    def _events_once(self, name: JobName, last_id: str) -> Iterator[Event]:
        headers = {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
        with self._answers(), self._http.stream("GET", f"{name.path}/events", headers=headers) as answer:
            self._check(answer)
            yield from parse_events(answer.iter_lines())

    # -- answers --------------------------------------------------------------------------------------------------
    def _json(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        with self._answers():
            answer = self._http.request(method, path, **arguments)
            self._check(answer)
            try:
                document = answer.json()
            except ValueError:
                document = None
        if not isinstance(document, dict):
            raise Unavailable(
                {
                    "code": "NOT_THE_SERVICE",
                    "detail": "something answered that is not the Optimizing API",
                    "expected": "JSON",
                    "received": answer.headers.get("content-type", "no content type"),
                    "hint": f"check --url or OPTIMIZING_URL; it is {self.url}",
                }
            )
        return document

    def _answers(self) -> AbstractContextManager[None]:
        """Turns what goes wrong on the way to the service into Unavailable."""
        hint = "start it with `optimizing serve`, or name another one with --url or OPTIMIZING_URL"
        return _reaching(f"the service at {self.url}", hint)

    @staticmethod
    def _check(answer: httpx2.Response) -> None:
        """Raises Refused or Unavailable unless the answer is a success."""
        if answer.is_success:
            return
        answer.read()
        try:
            problem = answer.json()
        except ValueError:
            problem = {}
        if not isinstance(problem, dict):
            problem = {}
        status = answer.status_code
        problem.setdefault("detail", problem.get("title") or f"the service answered with HTTP {status}")
        problem.setdefault("code", f"HTTP_{status}")
        problem["status"] = status
        raise (Refused if answer.is_client_error else Unavailable)(problem)


@contextmanager
def _reaching(place: str, hint: str) -> Iterator[None]:
    try:
        yield
    except (httpx2.TransportError, httpx2.DecodingError) as error:
        raise Unavailable(
            {
                "code": "UNREACHABLE",
                "detail": f"{place} cannot be reached",
                "expected": "an answer",
                "received": f"{type(error).__name__}: {error}",
                "hint": hint,
            }
        ) from error


def _pieces(answer: httpx2.Response, start: int) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) as they come, so that what has come is kept when the connection breaks."""
    offset = start if answer.status_code == httpx2.codes.PARTIAL_CONTENT else 0
    for chunk in answer.iter_bytes():
        yield offset, chunk
        offset += len(chunk)


def parse_events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events of a stream's lines (WHATWG HTML, 9.2.6); comments and events without data are skipped."""
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields['data']}\n{value}" if name == "data" and "data" in fields else value
        elif not line and "data" in fields:
            yield Event(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", ""))
            fields = {}
        elif not line:
            fields = {}
