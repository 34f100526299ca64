"""A server as a subprocess: it can be killed and started again, and does not outlive the process that started it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import eventually

START_SEC, STOP_SEC = 90.0, 15.0


@dataclass
class Process:
    """A server's process. `environment` and PATH are all that it is told; `answers` says whether it is ready."""

    command: Sequence[str | Path]
    folder: Path
    answers: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    litter: Sequence[Path] = ()
    """What it leaves outside its folder."""
    running: subprocess.Popen[bytes] | None = None
    watchdog: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    @property
    def is_running(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises AssertionError with its log where it does not."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), **self.environment}
        with open(self.log, "ab") as log:
            self.running = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the tests, which stop it when they have ended
            )
        # Its standard input ends when this process does, however that dies; a line instead says that all is well.
        watch = ["sh", "-c", 'read -r _ || kill -9 "$1" 2>/dev/null', "watchdog", str(self.running.pid)]
        self.watchdog = subprocess.Popen(watch, stdin=subprocess.PIPE, start_new_session=True)
        eventually(self._is_ready, START_SEC, 0.05, f"an answer of {self.command[0]}; see {self.log}")

    def _is_ready(self) -> bool:
        assert self.is_running, f"{self.command[0]} ended:\n{self.log.read_text(errors='replace')[-4000:]}"
        return self.answers()

    def kill(self) -> None:
        """As `kill -9`: nothing is written that was not."""
        if self.running is not None:
            self.running.kill()
            self._wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to what does not end then."""
        if self.running is not None:
            self.running.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.running.wait(STOP_SEC)
            self.kill()

    def _wait(self) -> None:
        assert self.running is not None
        self.running.wait(STOP_SEC)
        if self.watchdog is not None:
            self.watchdog.communicate(b"well\n")
            self.watchdog = None
