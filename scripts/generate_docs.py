"""Writes the parts of the documentation that the code knows better: settings, error codes, `.env.example`.

python scripts/generate_docs.py            writes them
python scripts/generate_docs.py --check    says whether they are fresh, and writes nothing
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import SecretStr  # noqa: E402
from pydantic.fields import FieldInfo  # noqa: E402

import app.main  # noqa: E402 - so that every error class is known
import app.toolkit.pruning.errors  # noqa: E402
import app.toolkit.tensorrt.errors  # noqa: E402
import app.toolkit.verification.errors  # noqa: E402, F401
from app.config import Settings  # noqa: E402
from app.errors import ServiceError  # noqa: E402
from app.toolkit.errors import RequestError, ToolkitError  # noqa: E402
from app.toolkit.tensorrt.flags_table import flags_table  # noqa: E402

BEGIN, END = "<!-- generated: {} -->", "<!-- end: {} -->"


# -- settings -------------------------------------------------------------------------------------------------------
def settings_groups() -> dict[str, list[tuple[str, FieldInfo]]]:
    """Every field under the comment that stands above its group in the class."""
    group = ""
    groups: dict[str, list[tuple[str, FieldInfo]]] = {}
    for line in inspect.getsource(Settings).splitlines():
        if heading := re.fullmatch(r"    # (.+)", line):
            group = heading[1]
        elif (name := re.match(r"    (\w+): ", line)) and name[1] in Settings.model_fields:
            groups.setdefault(group, []).append((name[1], Settings.model_fields[name[1]]))
    return groups


def as_written(value: Any) -> str:
    """A default as one would write it in the environment."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(as_written, value))
    return f"{value:.10f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def default_of(field: FieldInfo) -> tuple[str, str]:
    """The default as written, and in words where it depends on the machine."""
    if field.default_factory is not None:
        return "", (inspect.getdoc(field.default_factory) or "").rstrip(".")
    return as_written(field.default), ""


def choices_of(field: FieldInfo) -> str:
    found = [choice for choice in get_args(field.annotation) if isinstance(choice, str)]
    return f" One of: {', '.join(found)}." if len(found) > 1 else ""


def env_example() -> str:
    lines = [
        "# Every setting of the service, with its default; none is needed to start. Copy to .env, change, start with",
        "#   set -a; . ./.env; set +a; optimizing serve",
        "# Generated from app/config.py by `make docs`; docs/settings.md says more.",
    ]
    for group, fields in settings_groups().items():
        lines += ["", f"# -- {group} --"]
        for name, field in fields:
            value, words = default_of(field)
            note = f" Default: {words}." if words else ""
            lines += [f"# {field.description}{choices_of(field)}{note}", f"# {name.upper()}={value}"]
    return "\n".join(lines) + "\n"


def settings_table() -> str:
    lines = []
    for group, fields in settings_groups().items():
        lines += [f"### {group}", "", "| variable | default | what it is |", "|---|---|---|"]
        for name, field in fields:
            value, words = default_of(field)
            default = f"`{value}`" if value else words or "unset"
            lines.append(
                f"| `{name.upper()}` | {_cell(default)} | {_cell(f'{field.description}{choices_of(field)}')} |"
            )
        lines.append("")
    return "\n".join(lines).rstrip()


# -- errors ---------------------------------------------------------------------------------------------------------
def subclasses(parent: type[Any]) -> Iterator[type[Any]]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


def http_codes() -> dict[str, tuple[int, str]]:
    """Code -> (HTTP status, meaning) of everything that a request can be refused with."""
    classes = {error.__name__: error for error in subclasses(ServiceError)}
    found = {
        error.code: (error.status, error.title if "title" in vars(error) else (inspect.getdoc(error) or "").rstrip("."))
        for error in classes.values()
        if error.code not in {"SERVICE_ERROR", *(parent.code for parent in error.__bases__ if hasattr(parent, "code"))}
    }
    for call in _calls():
        error = classes.get(_name(call.func))
        code = next((word.value for word in call.keywords if word.arg == "code"), None)
        if error and isinstance(code, ast.Constant):
            found.setdefault(str(code.value), (error.status, _text(call.args[0])))
    return found


def job_codes() -> dict[str, str]:
    """Code -> meaning of everything that a job can fail with by the service's and the handlers' own word."""
    found: dict[str, str] = {}
    for call in _calls():
        if (
            _name(call.func) in {"failed", "JobFailed"}
            and len(call.args) > 1
            and isinstance(call.args[0], ast.Constant)
        ):
            found.setdefault(str(call.args[0].value), _text(call.args[1]))
    for node in _nodes():
        if isinstance(node, ast.Dict):
            fields = {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            code = fields.get("code")
            if isinstance(code, ast.Constant) and "message" in fields:
                found.setdefault(str(code.value), _text(fields["message"]))
    found.setdefault("INPUT_NOT_FOUND", "an input is not there")
    return found


def toolkit_codes() -> dict[str, tuple[str, str]]:
    """Code -> (whose matter it is, meaning) of everything that the toolkit foresees."""
    found = {}
    for error in subclasses(ToolkitError):
        if not error.__subclasses__():
            whose = "the request" if issubclass(error, RequestError) else "the model or the machine"
            found[error.code] = (whose, (inspect.getdoc(error) or "").splitlines()[0].rstrip("."))
    return found


def errors_tables() -> dict[str, str]:
    http_rows = sorted(http_codes().items(), key=lambda row: (row[1][0], row[0]))
    http = [f"| `{code}` | {status} | {_cell(meaning)} |" for code, (status, meaning) in http_rows]
    jobs = [f"| `{code}` | {_cell(meaning)} |" for code, meaning in sorted(job_codes().items())]
    toolkit = [f"| `{code}` | {whose} | {_cell(text)} |" for code, (whose, text) in sorted(toolkit_codes().items())]
    return {
        "http": "\n".join(["| code | HTTP | what it means |", "|---|---|---|", *http]),
        "jobs": "\n".join(["| code | what happened |", "|---|---|", *jobs]),
        "toolkit": "\n".join(["| code | lies with | what it means |", "|---|---|---|", *toolkit]),
    }


def _nodes() -> Iterator[ast.AST]:
    for folder in ("jobs", "routers", "storage"):
        for path in sorted((ROOT / "app" / folder).rglob("*.py")):
            yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _calls() -> Iterator[ast.Call]:
    return (node for node in _nodes() if isinstance(node, ast.Call))


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _text(node: ast.expr) -> str:
    """A message as it stands in the code; what is filled in shows as `...`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    return "..."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# -- writing --------------------------------------------------------------------------------------------------------
def replaced(text: str, name: str, content: str) -> str:
    """The text with what stands between the markers of `name` replaced."""
    begin, end = BEGIN.format(name), END.format(name)
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise SystemExit(f"generate_docs: expected {begin} and {end} in the file; put them where the table belongs")
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def generated() -> dict[Path, str]:
    """Every generated file as it should be."""
    settings, errors = ROOT / "docs" / "settings.md", ROOT / "docs" / "errors.md"
    errors_text = errors.read_text(encoding="utf-8")
    for name, table in errors_tables().items():
        errors_text = replaced(errors_text, name, table)
    tensorrt = ROOT / "docs" / "tensorrt.md"
    return {
        tensorrt: replaced(tensorrt.read_text(encoding="utf-8"), "trtexec", flags_table()),
        ROOT / ".env.example": env_example(),
        settings: replaced(settings.read_text(encoding="utf-8"), "settings", settings_table()),
        errors: errors_text,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the generated parts of the documentation.")
    parser.add_argument("--check", action="store_true", help="only say whether they are fresh")
    check = parser.parse_args().check
    stale = [
        path for path, text in generated().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if check:
            print(f"{path.relative_to(ROOT)} is not what the code says; run `make docs`")
        else:
            path.write_text(generated()[path], encoding="utf-8")
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
