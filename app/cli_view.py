"""What the command line shows: tables on stdout, progress and remarks on stderr, or one JSON document on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from app.client import Event
from app.client import Progress as OnProgress

STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "dim"}


class View:
    """One command's output. With `as_json` stdout gets one JSON document and nothing else."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console(highlight=False)
        self.err = Console(stderr=True, highlight=False)

    def document(self, document: dict[str, Any]) -> None:
        """The command's result, where JSON was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def say(self, text: str) -> None:
        """A remark for a person, in rich's markup."""
        self.err.print(text, soft_wrap=True)

    def result(self, text: str) -> None:
        """A line that a person or a pipe reads, in rich's markup; left out where JSON was asked for."""
        if not self.as_json:
            self.out.print(text, soft_wrap=True)

    def table(self, table: Table) -> None:
        if not self.as_json:
            self.out.print(table)

    def problem(self, problem: dict[str, Any]) -> None:
        """What went wrong: message, expected, received, what to try."""
        self.document({"error": problem})
        faults = problem.get("errors") or []
        said = problem.get("title") if faults else problem.get("detail")  # the detail repeats the faults
        self.say(f"[red]error[/] [bold]{escape(str(problem.get('code', '')))}[/]: {escape(str(said or ''))}")
        for field, label in (("expected", "expected"), ("received", "received"), ("hint", "try")):
            if problem.get(field):
                self.say(f"  {label}: {escape(str(problem[field]))}")
        for fault in faults:
            nearest = fault.get("did_you_mean")
            ending = f" (did you mean {nearest}?)" if nearest else ""
            self.say(f"  {escape(str(fault.get('field')))}: {escape(str(fault.get('message')))}{escape(ending)}")

    # -- progress -------------------------------------------------------------------------------------------------
    @contextmanager
    def transfer(self, label: str) -> Iterator[OnProgress]:
        """A bar of bytes."""
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as bar:
            task = bar.add_task(escape(label), total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextmanager
    def following(self, label: str, *, verbose: bool = False) -> Iterator[JobProgress]:
        """A bar of a job's phases; a line a phase where stderr is no terminal."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("[cyan]{task.fields[phase]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as bar:
            yield JobProgress(self, bar, label, verbose=verbose)


class JobProgress:
    """Shows a job's events as they come."""

    def __init__(self, view: View, bar: Progress, label: str, *, verbose: bool) -> None:
        self._view = view
        self._bar = bar
        self._label = label
        self._verbose = verbose
        self._task = bar.add_task(escape(label), total=1.0, phase="queued")
        self._shown = ""

    def show(self, event: Event) -> None:
        if event.type == "log":
            for line in event.data.get("lines", []) if self._verbose else []:
                self._bar.console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)
        elif event.type == "progress":
            self._bar.update(self._task, completed=event.data["progress"], phase=event.data["phase"])
            self._remark(str(event.data["phase"]))
        elif event.type == "state":
            self._bar.update(self._task, phase=event.data["status"])
            self._remark(str(event.data["status"]))

    def _remark(self, state: str) -> None:
        if state != self._shown and not self._view.err.is_terminal:
            self._view.say(f"{escape(self._label)}: {escape(state)}")
        self._shown = state


# -- tables ---------------------------------------------------------------------------------------------------------
def plain_table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def styled(status: str) -> str:
    return f"[{STYLES.get(status, 'default')}]{escape(status)}[/]"


def jobs_table(jobs: list[dict[str, Any]]) -> Table:
    table = plain_table("", "job", "action", "status", "progress", "phase or error", "accepted", right=("progress",))
    for job in jobs:
        error = job.get("error") or {}
        table.add_row(
            f"{job['pid']}/{job['oid']}",
            escape(job["action"]),
            styled(job["status"]) + (" [dim](cached)[/]" if job.get("cached") else ""),
            f"{job['progress']:.0%}",
            escape(error.get("code") or job.get("phase") or ""),
            job["created_at"][:19].replace("T", " "),
        )
    return table


def kinds_table(kinds: list[dict[str, Any]]) -> Table:
    table = plain_table("", "action", "kind", "here", "what it does")
    for kind in kinds:
        missing = [module for module, version in kind["needs"].items() if version is None]
        here = "[green]yes[/]" if kind["available"] else f"[red]no[/] (lacks {escape(', '.join(missing))})"
        table.add_row(escape(kind["action"]), escape(kind["kind"]), here, escape(kind["summary"]))
    return table


def kind_parameters_table(kind: dict[str, Any]) -> Table:
    """One kind's parameters as its JSON schema has them."""
    schema = kind["parameters_schema"]
    required = schema.get("required", [])
    table = plain_table(f"{kind['action']}: {kind['summary']}", "parameter", "default", "what it is")
    for name, field in schema["properties"].items():
        if name != "kind":
            default = "required" if name in required else json.dumps(field.get("default"))
            table.add_row(name, escape(default), escape(field.get("description", field.get("title", ""))))
    return table


def job_lines(view: View, job: dict[str, Any]) -> None:
    """How a job ended, for a person."""
    name = f"{job['pid']}/{job['oid']}"
    cached = f" [dim](same work as {escape(str(job['cached_from']))})[/]" if job.get("cached_from") else ""
    view.result(f"{name} {escape(job['action'])} {styled(job['status'])}{cached}")
    if job["status"] == "failed" and job.get("error"):
        view.say(f"[red]{escape(job['error']['code'])}[/]: {escape(job['error']['message'])}")
        for field, label in (("expected", "expected"), ("received", "received"), ("hint", "try")):
            if job["error"].get(field):
                view.say(f"  {label}: {escape(str(job['error'][field]))}")
        view.say(f"  log: optimizing fetch {name} job.log")
    for file in job.get("artifact_files", []):
        view.result(f"  {escape(file)}")
