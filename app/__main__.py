"""`python -m app`: the service's own process.

It is a module of its own, and light, because multiprocessing looks at `__main__` in every child.
"""

from __future__ import annotations

import logging
import signal
import sys

import uvicorn
from pydantic import ValidationError

from app.config import Settings
from app.errors import ServiceError
from app.main import create_app

CLOSE_CONNECTIONS_SEC = 3
"""How long open answers (event streams) may go on after SIGTERM; clients take them up again by Last-Event-ID."""

SWITCH_INTERVAL_SEC = 0.0005
"""How long the event loop waits at most for the lock of the interpreter while a thread has it; else it is 5 ms."""


class StartErrors(logging.Filter):
    """A store that keeps the service from starting is told in a line; what we did not foresee keeps its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage().rstrip()
        last = text.rpartition("\n")[2]
        if text.startswith("Traceback") and last.startswith("app.errors."):
            record.msg, record.args = f"optimizing-api cannot start: {last.partition(': ')[2]}", ()
        return True


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn.error").addFilter(StartErrors())
    try:
        settings = Settings()
        app = create_app(settings)
    except (ValidationError, ServiceError, ImportError) as error:
        print(f"optimizing-api cannot start: {error}", file=sys.stderr)
        return 2
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.bind_host,
            port=settings.port,
            timeout_graceful_shutdown=CLOSE_CONNECTIONS_SEC,
            log_config=None,
            access_log=False,
        )
    )
    sys.setswitchinterval(SWITCH_INTERVAL_SEC)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    server.run()
    return 0 if server.started else 3


def _stop(*_: object) -> None:
    """A stop that was asked for is no failure: uvicorn raises the signal again once everything is closed."""
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
