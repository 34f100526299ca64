"""A job's work folder: `jobs/{uid}/{pid}/{oid}`. Made by the service, filled with inputs, emptied into the store."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread

from app.config import Settings
from app.jobs.inputs import ResolvedInputs, Source
from app.jobs.protocol import INPUTS_DIR, LOG_NAME
from app.schemas.common import check_key
from app.schemas.kind import Kind, Parameters
from app.storage.artifacts import ArtifactStore, job_prefix
from app.storage.records import JobRecord


class Workspace:
    """Makes, fills, empties and removes work folders."""

    def __init__(self, settings: Settings, artifacts: ArtifactStore) -> None:
        self._root = settings.jobs_dir
        self._log_max_bytes = settings.job_log_max_mib * 1024 * 1024
        self._artifacts = artifacts

    def folder(self, job: JobRecord) -> Path:
        return self._root / job.uid / job.pid / job.oid

    def log(self, job: JobRecord) -> Path:
        return self.folder(job) / LOG_NAME

    async def make(self, job: JobRecord) -> Path:
        """An empty work folder; what an earlier attempt left is removed but for its log."""
        return await anyio.to_thread.run_sync(self._make, job)

    def _make(self, job: JobRecord) -> Path:
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        for entry in folder.iterdir():
            if entry.name != LOG_NAME:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        return folder

    def note(self, job: JobRecord, line: str) -> None:
        """Adds a line of the service's own to the job's log, if that is still a log that can be written."""
        path = self.log(job)
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with contextlib.suppress(OSError):  # a line of ours is not worth a job's end
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8", errors="backslashreplace", opener=unless_link) as log:
                log.write(f"[{moment}] {line}\n")

    async def stage(self, job: JobRecord, kind: Kind, parameters: Parameters, found: ResolvedInputs) -> dict[str, Any]:
        """Copies every input into the work folder; parameter name -> staged path, as `JobSpec.inputs` has it."""
        below = self.folder(job) / INPUTS_DIR
        staged: dict[str, list[Path]] = {}
        for name, sources in found.files.items():
            staged[name] = [await self._stage_one(source, below / name / source.name) for source in sources]
        inputs: dict[str, Any] = {name: str(staged[name][0]) for name, _ in kind.input_fields() if name in staged}
        for name, data in kind.data_sources(parameters):
            annotations = staged.get(f"{name}.annotations")
            inputs[name] = {
                "images": str(found.folders.get(name) or _common(staged[name], below / name)),
                "annotations": str(annotations[0]) if annotations else None,
                "sample": data.sample,
            }
        return inputs

    async def _stage_one(self, source: Source, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.key is not None:
            await self._artifacts.fetch(source.key, target)
        elif source.path is not None:
            await anyio.to_thread.run_sync(shutil.copyfile, source.path, target)
        return target

    async def collect(self, job: JobRecord) -> tuple[str, ...]:
        """Stores every file that the job made, and returns their names, sorted.

        Links and hidden files stay behind; so do names by which no client could ask, and the log says so.
        """
        names = await anyio.to_thread.run_sync(lambda: sorted(self._outputs(job)))
        for name in names:
            await self._artifacts.put_file(job_prefix(job.pid, job.oid) + name, self.folder(job) / name)
        return tuple(names)

    def _outputs(self, job: JobRecord) -> Iterator[str]:
        folder = self.folder(job)
        log = folder / LOG_NAME
        if log.is_file() and not log.is_symlink() and log.stat().st_size > self._log_max_bytes:
            os.truncate(log, self._log_max_bytes)
        for parent, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(parent) / name
                if name.startswith(".") or not stat.S_ISREG(path.lstat().st_mode):
                    continue
                try:
                    yield check_key(str(path.relative_to(folder)))
                except ValueError as fault:
                    self.note(job, f"left behind: {fault}")

    async def remove(self, job: JobRecord) -> None:
        """Removes the work folder. Those above it stay: another job may be about to be made in them."""
        await anyio.to_thread.run_sync(partial(shutil.rmtree, self.folder(job), ignore_errors=True))

    def folders(self) -> Iterator[tuple[str, str, str]]:
        """(uid, pid, oid) of every work folder that exists."""
        for folder in self._root.glob("*/*/*"):
            yield folder.parent.parent.name, folder.parent.name, folder.name


def _common(paths: list[Path], below: Path) -> Path:
    """One archive is a file; several images are the folder that holds them."""
    return paths[0] if len(paths) == 1 and paths[0].name.lower().endswith((".zip", ".tar", ".gz", ".tgz")) else below


def unless_link(path: str, flags: int) -> int:
    """A job may put what it likes into its folder; a log that is a link or a pipe is not ours to open."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
