"""From the words of a command line to a request, guided by what the service says of its kinds."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.client import JobName

_JOB = re.compile(r"(?:.*/jobs/)?(P[0-9]{1,18})/(O[0-9]{1,18})/?")
_LEADS_TO_KEY = ("artifacts/", "/")


class UsageFault(Exception):
    """The command line asks for something that cannot be; nothing was sent."""

    def __init__(self, message: str, *, expected: str = "", received: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.problem = {
            "code": "USAGE",
            "detail": message,
            "expected": expected,
            "received": received,
            "hint": hint,
        }


def job_and_rest(words: Sequence[str]) -> tuple[JobName, list[str]]:
    """The job that `PID/OID`, `PID OID` or a job's URL names, and the words after it."""
    for taken in (1, 2):
        match = _JOB.fullmatch("/".join(words[:taken]))
        if match and len(words) >= taken:
            return JobName(match[1], match[2]), list(words[taken:])
    raise UsageFault(
        "that names no job",
        expected="PID/OID, such as P0001/O0007, or both as two words",
        received=" ".join(words),
        hint="`optimizing jobs` lists yours",
    )


def only_job(words: Sequence[str]) -> JobName:
    name, rest = job_and_rest(words)
    if rest:
        raise UsageFault("there is more than one job's name", expected="PID/OID", received=" ".join(words))
    return name


def find_kind(kinds: Sequence[dict[str, Any]], action: str) -> dict[str, Any]:
    """The kind of an action. Raises UsageFault that lists the known ones and the nearest."""
    by_action = {kind["action"]: kind for kind in kinds}
    if action in by_action:
        return dict(by_action[action])
    nearest = difflib.get_close_matches(action, by_action, n=1, cutoff=0.5)
    raise UsageFault(
        f"the service knows no action {action!r}" + (f"; did you mean {nearest[0]}?" if nearest else ""),
        expected=f"one of {', '.join(sorted(by_action))}",
        received=action,
        hint="`optimizing kinds` shows them, with what each needs",
    )


def input_field(kind: Mapping[str, Any]) -> str | None:
    """The parameter that takes the file: `input_path`, else the first text that the kind requires; None: no file."""
    schema = kind["parameters_schema"]
    fields: Mapping[str, Any] = schema.get("properties", {})
    if "input_path" in fields:
        return "input_path"
    for name in schema.get("required", []):
        if name != "kind" and fields[name].get("type") == "string" and "enum" not in fields[name]:
            return str(name)
    return None


def is_key(text: str) -> bool:
    """Whether a text that names no file here may name one there: an artifact key, or a path on the server."""
    return text.startswith(_LEADS_TO_KEY)


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`name=value` pairs; a value is JSON where it reads as JSON, else text, and a dotted name goes inside."""
    found: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path or not all(path.split(".")):
            raise UsageFault(
                "--set takes a name and a value",
                expected="name=value, such as input_size=[640,640] or data.sample=32",
                received=setting,
            )
        *outer, name = path.split(".")
        place = found
        for part in outer:
            inner = place.setdefault(part, {})
            if not isinstance(inner, dict):
                raise UsageFault(f"--set gives {part} a value and something inside of it", received=setting)
            place = inner
        place[name] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_parameter_file(path: Path) -> dict[str, Any]:
    """The parameters of a JSON file; one that holds a whole request gives its `parameters`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageFault(
            "the parameter file cannot be read", expected="a file of JSON", received=f"{path}: {error}"
        ) from error
    if isinstance(document, dict) and isinstance(document.get("parameters"), dict):
        document = document["parameters"]
    if not isinstance(document, dict):
        raise UsageFault("the parameter file is no JSON object", expected='{"name": value, ...}', received=str(path))
    return document


def select_artifacts(artifacts: Sequence[dict[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """All artifacts, or the ones named. Raises UsageFault for a name that is not among them."""
    if not names:
        return list(artifacts)
    by_name = {artifact["name"]: artifact for artifact in artifacts}
    for name in names:
        if name not in by_name:
            raise UsageFault(
                f"the job has no artifact {name!r}", expected=f"one of {', '.join(by_name) or 'none'}", received=name
            )
    return [by_name[name] for name in names]
