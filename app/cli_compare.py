"""`optimizing compare`: a verification on this machine, without the service.

What it needs is heavy, and reads the environment as it is imported: `app.cli` imports this late, with
`library_variables` set.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from math import inf, nan
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from app.archives import ARCHIVE_ENDINGS, BadArchive, unpack
from app.cli_request import UsageFault
from app.cli_view import View, plain_table
from app.client import Event
from app.toolkit.errors import ToolkitError
from app.toolkit.images import DEFAULT_IMAGES
from app.toolkit.verification.advice import advice, reasons
from app.toolkit.verification.facts import ReportFacts
from app.toolkit.verification.pipeline import verify
from app.toolkit.verification.report import export_report, write_reports
from app.toolkit.verification.request import Device, Limits, Mode, Sampling, VerifyRequest
from app.toolkit.verification.result import Comparison, Gate, Verdict

STYLES: dict[Verdict, str] = {"passed": "green", "failed": "red", "undecided": "yellow"}
DEVICES: dict[str, Device] = {"cpu": "cpu", "gpu": "cuda"}


TASK_LIMITS = tuple(one.name for one in fields(Limits))
KERNEL_LIMITS = ("boxes_px", "scores", "values")


@dataclass(frozen=True)
class CompareWords:
    """The command line. Without `data` the two pictures that Ultralytics carries are compared, as a smoke test."""

    reference: Path
    candidate: Path
    data: Path | None
    annotations: Path | None
    mode: Mode | None
    sample_count: int
    per_class_k: int
    max_total: int
    limit: list[str]
    other_network: bool
    out: Path
    strict: bool
    device: str
    trusted: bool


def compare(view: View, words: CompareWords) -> bool:
    """Compare, show the verdict and write the reports; returns whether the candidate passed.

    Raises UsageFault for words that do not fit together.
    """
    _check(words)
    words.out.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="optimizing-compare-") as kept, _stdout_is_ours():
            facts = _verified(view, words, Path(kept))
            report, page = write_reports(facts, words.out.resolve())  # draws images, which an archive's folder has
    except ToolkitError as error:
        view.problem({"detail": error.message, **error.as_dict()})
        return False
    view.document({"report_path": str(report), "page_path": str(page), "report": export_report(facts)})
    _show(view, facts)
    view.result(f"Report: {escape(str(report))}")
    view.result(f"Page: {escape(str(page))}")
    return not facts.failed


def _limits(words: CompareWords) -> dict[str, float]:
    found = {}
    for text in words.limit:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            found[name] = nan  # which no comparison below lets pass
        if name not in (*TASK_LIMITS, *KERNEL_LIMITS) or not 0 <= found[name] < inf:
            raise UsageFault(
                "--limit is not understood",
                expected=f"NAME=NUMBER, of {', '.join((*TASK_LIMITS, *KERNEL_LIMITS))}",
                received=text,
                hint="raw answers of a pruned network may differ as they like: --other-network",
            )
    return found


def _check(words: CompareWords) -> None:
    _limits(words)
    if words.data is None and (words.mode not in {None, "smoke"} or words.annotations is not None):
        raise UsageFault(
            "without --data there are only the two pictures that Ultralytics carries",
            expected="--data FOLDER with your images, or --mode smoke",
            received=f"--mode {words.mode}" if words.mode else "--annotations",
        )
    if words.data is not None and words.data.is_file() and not words.data.name.lower().endswith(ARCHIVE_ENDINGS):
        raise UsageFault(
            "--data is neither a folder nor an archive",
            expected=f"a folder, or a file ending in {', '.join(ARCHIVE_ENDINGS)}",
            received=str(words.data),
        )


def _verified(view: View, words: CompareWords, folder: Path) -> ReportFacts:
    data = words.data or DEFAULT_IMAGES[0].parent
    if words.data is None:
        view.say("no --data: a smoke test on the two pictures that Ultralytics carries, which says little of a task")
    request = VerifyRequest(
        reference=words.reference,
        candidate=words.candidate,
        images=_unpacked(data, folder / "images") if data.is_file() else data,
        folder=folder,
        annotations=words.annotations,
        sampling=Sampling(
            words.mode or ("smoke" if words.data is None else "coverage"),
            sample_count=words.sample_count,
            per_class_k=words.per_class_k,
            max_total=words.max_total,
        ),
        limits={name: value for name, value in _limits(words).items() if name not in KERNEL_LIMITS},
        kernel_limits={name: value for name, value in _limits(words).items() if name in KERNEL_LIMITS},
        same_network=not words.other_network,
        devices=(DEVICES[words.device], DEVICES[words.device]),
        strict=words.strict,
        trusted=words.trusted,
    )
    with view.following("compare") as shown:
        return verify(request, lambda phase, part: shown.show(_event(phase, part)))


def _event(phase: str, part: float) -> Event:
    return Event("progress", {"phase": phase, "progress": part}, "")


def _unpacked(archive: Path, target: Path) -> Path:
    try:
        unpack(archive, target)
    except BadArchive as error:
        raise UsageFault("the archive cannot be unpacked", expected="a whole one", received=str(error)) from error
    return target


@contextmanager
def _stdout_is_ours() -> Iterator[None]:
    """Whatever libraries print goes to stderr."""
    with redirect_stdout(sys.stderr):
        yield


# -- what is shown ----------------------------------------------------------------------------------------------------
def _show(view: View, facts: ReportFacts) -> None:
    view.result(f"[{STYLES[facts.verdict]}]{facts.verdict}[/]: {escape(_sentence(facts))}")
    view.table(_gates_table(facts))
    for reason in reasons(facts.comparisons):
        view.say(f"  {escape(reason)}")
    for line in advice(facts):
        view.say(f"  - {escape(line)}")
    for note in facts.notes:
        view.say(f"  [dim]note: {escape(note)}[/]")


def _sentence(facts: ReportFacts) -> str:
    names = Path(facts.candidate.path).name, Path(facts.reference.path).name
    on = f"on {facts.sampled_images} images (mode {facts.sampling.mode})"
    if facts.verdict == "passed":
        return f"{names[0]} answers like {names[1]} {on}"
    if facts.verdict == "failed":
        return f"{names[0]} does not answer like {names[1]} {on}"
    ending = "--strict makes that a failure" if facts.strict else "no failure without --strict"
    return f"whether {names[0]} answers like {names[1]} could not be decided {on}; {ending}"


def _gates_table(facts: ReportFacts) -> Table:
    table = plain_table("", "parity", "gate", "measured", "limit", "verdict", right=("measured", "limit"))
    for label, comparison in _answers(facts):
        for gate in comparison.gates:
            table.add_row(label, escape(gate.name), _measured(gate), f"{gate.limit:.4g}", _verdict(gate))
    return table


def _answers(facts: ReportFacts) -> list[tuple[str, Comparison]]:
    """Both answers; one of them where the preprocessing is the same, as the two are then one."""
    if facts.kernel.gates == facts.pipeline.gates:
        return [("both", facts.kernel)]
    return [(comparison.name, comparison) for comparison in facts.comparisons]


def _measured(gate: Gate) -> str:
    return "not finite" if gate.measured is None else f"{gate.measured:.4g}"


def _verdict(gate: Gate) -> str:
    leaning = f", leans to {gate.leans}" if gate.verdict == "undecided" and gate.leans else ""
    return f"[{STYLES[gate.verdict]}]{gate.verdict}[/]{leaning}"
