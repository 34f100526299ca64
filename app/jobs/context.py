"""What a handler sees of its job: staged inputs, the place of its output, and a way to say how far it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.archives import ARCHIVE_ENDINGS, BadArchive, unpack
from app.jobs.protocol import INPUTS_DIR, JobSpec


class JobFailed(Exception):
    """A failure with a code of its own; for handlers that have no toolkit error to raise."""

    def __init__(self, code: str, message: str, *, expected: str = "", received: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.expected, self.received, self.hint = code, message, expected, received, hint


class JobContext:
    """Given to every handler's `run(parameters, context)`."""

    def __init__(self, spec: JobSpec, send: Callable[[str, float], None]) -> None:
        self._spec = spec
        self._send = send
        self.workdir = Path(spec.workdir)
        self.threads = spec.threads
        """CPU threads that this job may keep busy."""
        self.cache_dir = Path(spec.cache_dir) if spec.cache_dir else None
        """A folder that outlives the job; None where the job is run by hand."""
        self.timing_cache_dir = Path(spec.timing_cache_dir) if spec.timing_cache_dir else None
        self.options: dict[str, Any] = spec.options
        """The service's settings that are no secret, by their lower-case name."""

    @property
    def output(self) -> Path:
        """Where the kind's output goes. Every file in the work folder becomes an artifact, hidden ones do not."""
        if self._spec.output_name is None:
            raise LookupError("this kind declares no OutputFile parameter")
        return self.workdir / self._spec.output_name

    def input(self, name: str) -> Path:
        """The staged file of a parameter; it bears the name that the request gave it."""
        return Path(self._spec.inputs[name])

    def optional_input(self, name: str) -> Path | None:
        """The staged file of a parameter that may be left out."""
        return self.input(name) if name in self._spec.inputs else None

    def images(self, name: str) -> tuple[Path, int | None] | None:
        """The folder of a DataSource parameter and the sample asked for; None where the request gave none."""
        source = self._spec.inputs.get(name)
        if source is None:
            return None
        folder = Path(source["images"])
        if folder.is_file():
            folder = _unpacked(folder, self.workdir / INPUTS_DIR / f"{name}.unpacked")
        return folder, source["sample"]

    def annotations(self, name: str) -> Path | None:
        source = self._spec.inputs.get(name) or {}
        return Path(source["annotations"]) if source.get("annotations") else None

    def phase(self, name: str, fraction: float = 0.0) -> None:
        """Says what is being done, and which part of the whole job (0 to 1) is behind it."""
        self._send(name, min(max(fraction, 0.0), 1.0))


def _unpacked(archive: Path, target: Path) -> Path:
    """The folder of an archive's files. Raises JobFailed."""
    try:
        unpack(archive, target)
    except BadArchive as error:
        raise JobFailed(
            "BAD_ARCHIVE",
            "the archive of images cannot be unpacked",
            expected=f"a whole archive ({', '.join(ARCHIVE_ENDINGS)}) of images",
            received=str(error),
            hint="pack it anew and upload it again",
        ) from error
    return target
