"""The `optimizing` command: a thin client over the service's HTTP API, and the way to start the service.

Nothing of the service is imported here, and what a command does not need is imported late: `--help` stays quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app import __version__

if TYPE_CHECKING:
    from app.cli_view import View
    from app.client import Client, JobName

EXIT_FAILED, EXIT_USAGE, EXIT_CANCELLED, EXIT_INTERRUPTED = 1, 2, 5, 130
EXIT_BY_STATUS = {"completed": 0, "failed": EXIT_FAILED, "cancelled": EXIT_CANCELLED}
EXIT_CODES = (
    "Exit codes: 0 done; 1 the job failed; 2 the command line is wrong; 3 the service refused (4xx); "
    "4 the service cannot be reached or is in trouble (5xx); 5 the job was cancelled; 130 interrupted."
)
COMPARE_EXIT_CODES = (
    "Exit codes: 0 passed, or undecided without --strict; 1 failed, or could not be compared; "
    "2 the command line is wrong, or a file here cannot be used; 130 interrupted."
)

cli = typer.Typer(
    name="optimizing",
    help="Makes vision models ready for the device they must run on, through the Optimizing API.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Url = Annotated[str, typer.Option("--url", envvar="OPTIMIZING_URL", help="The service.", metavar="URL")]
Key = Annotated[
    str | None, typer.Option("--key", envvar="OPTIMIZING_API_KEY", help="Your API key, where one is asked for.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout; everything else on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the job's log as it grows.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end, or return once accepted.")]
Pid = Annotated[str, typer.Option("--pid", envvar="OPTIMIZING_PID", help="The project: P and digits.", metavar="PID")]
Job = Annotated[list[str], typer.Argument(help="PID/OID, such as P0001/O0007; two words will do.", metavar="PID/OID")]
A_FILE: dict[str, Any] = {"exists": True, "dir_okay": False}
DEFAULT_URL = "http://127.0.0.1:8000"


def main() -> None:
    """The console script."""
    cli()


@cli.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"optimizing {__version__}")
        raise typer.Exit


@contextmanager
def session(url: str, key: str | None, as_json: bool) -> Iterator[tuple[Client, View]]:
    """A client and a view; what goes wrong inside is shown, and ends the command with the code that says so."""
    from app.cli_request import UsageFault
    from app.cli_view import View
    from app.client import Client, ClientError

    view = View(as_json=as_json)
    try:
        try:
            client = Client(url, key)
        except ValueError as error:
            raise UsageFault(str(error), hint="set --url or OPTIMIZING_URL") from error
        with client:
            yield client, view
    except UsageFault as fault:
        view.problem(fault.problem)
        raise typer.Exit(EXIT_USAGE) from fault
    except ClientError as error:
        view.problem(error.problem)
        raise typer.Exit(error.exit_code) from error
    except OSError as error:
        view.problem({"code": "LOCAL_FILE", "detail": "a file here cannot be used", "received": str(error)})
        raise typer.Exit(EXIT_USAGE) from error
    except KeyboardInterrupt as interrupt:
        view.say("interrupted")
        raise typer.Exit(EXIT_INTERRUPTED) from interrupt


@cli.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to bind; the setting HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="TCP port, 0 for a free one; the setting PORT.")] = None,
    workspace: Annotated[Path | None, typer.Option(help="Where things lie; the setting WORKSPACE_DIR.")] = None,
) -> None:
    """Start the service in this terminal; Ctrl-C ends it. Every other setting comes from the environment."""
    for name, value in (("HOST", host), ("PORT", port), ("WORKSPACE_DIR", workspace)):
        if value is not None:
            os.environ[name] = str(value)
    os.execv(sys.executable, [sys.executable, "-m", "app"])  # noqa: S606 - this process becomes the service


@cli.command(epilog=EXIT_CODES)
def demo(
    model: Annotated[
        Path | None, typer.Argument(help="A .pt of your own; left out, the pills model of the checkout.")
    ] = None,
    workspace: Annotated[Path, typer.Option(help="Where the demo keeps what it makes.")] = Path("demo-workspace"),
    as_json: Json = False,
) -> None:
    """Start a service of its own, export a real model over HTTP, and show what came out and what it proves."""
    from app.demo import DemoFailed, run_demo

    with session(DEFAULT_URL, None, as_json) as (_, view):
        try:
            document = run_demo(view, model, workspace)
        except DemoFailed as failure:
            view.problem(failure.problem)
            raise typer.Exit(failure.exit_code) from failure
        view.document(document)


@cli.command(epilog=EXIT_CODES)
def submit(
    action: Annotated[str, typer.Argument(help="What to do; `optimizing kinds` lists it.")],
    file_or_key: Annotated[
        str | None, typer.Argument(help="A file here (uploaded first), an artifact key, or a path on the server.")
    ] = None,
    *,
    pid: Pid,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter, as often as needed: --set input_size=[640,640]", metavar="NAME=VALUE"),
    ] = None,
    param_file: Annotated[Path | None, typer.Option(help="A JSON file of parameters; --set goes before it.")] = None,
    callback_url: Annotated[str | None, typer.Option(help="Told when the job has ended.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Do the work again though it was done before.")] = False,
    queue: Annotated[bool, typer.Option("--queue", help="Accept it though this machine cannot do it.")] = False,
    idempotency_key: Annotated[str | None, typer.Option(help="Same key and request: the same job.")] = None,
    wait: Wait = True,
    verbose: Verbose = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Upload a file if need be, start a job, and follow it to its end."""
    from app import cli_request

    with session(url, key, as_json) as (client, view):
        kind = cli_request.find_kind(client.kinds(), action)
        given = cli_request.read_parameter_file(param_file) if param_file else {}
        parameters = {"kind": kind["kind"], **given, **cli_request.parse_settings(settings or [])}
        if file_or_key is not None:
            parameters[_input_field(kind)] = _located(client, view, file_or_key, pid)
        body: dict[str, Any] = {"pid": pid, "parameters": parameters}
        options = {"callback_url": callback_url, "force": force or None, "queue": queue or None}
        body |= {name: value for name, value in options.items() if value is not None}
        _accepted(client, view, client.submit(action, body, idempotency_key), wait=wait, verbose=verbose)


def _input_field(kind: dict[str, Any]) -> str:
    from app.cli_request import UsageFault, input_field

    field = input_field(kind)
    if field is None:
        raise UsageFault(f"{kind['action']} takes no file", hint=f"`optimizing kinds {kind['action']}` shows more")
    return field


def _located(client: Client, view: View, file_or_key: str, pid: str) -> str:
    """What the request may call the file: the key of its upload, or what was given."""
    from app.cli_request import UsageFault, is_key

    path = Path(file_or_key)
    if path.is_file():
        return str(_uploaded(client, view, path, pid, path.name)["key"])
    if is_key(file_or_key):
        return file_or_key
    raise UsageFault(
        "there is no such file here, and it is no artifact key",
        expected="a file, a key such as artifacts/P0001/optimizing/O0001/best.pt, or an absolute path on the server",
        received=file_or_key,
    )


def _uploaded(client: Client, view: View, path: Path, pid: str, name: str) -> dict[str, Any]:
    with view.transfer(f"uploading {name}") as on_progress:
        stored = client.upload(path, pid, name, on_progress)
    view.say(f"uploaded {name}: {stored['key']}")
    return stored


def _accepted(client: Client, view: View, started: dict[str, Any], *, wait: bool, verbose: bool) -> None:
    """What follows an accepted POST: its end, or its name."""
    from app.client import JobName

    name = JobName(started["pid"], started["oid"])
    if wait:
        _follow(client, view, name, started["action"], verbose=verbose)
    view.document(started)
    view.result(str(name))
    view.say(f"accepted; follow it with: optimizing watch {name}")


def _follow(client: Client, view: View, name: JobName, action: str, *, verbose: bool) -> None:
    """Shows a job to its end and ends the command as the job ended."""
    from app.cli_view import job_lines

    try:
        with view.following(f"{name} {action}", verbose=verbose) as progress:
            for event in client.events(name):
                progress.show(event)
        job = client.job(name)
    except KeyboardInterrupt as interrupt:
        view.document({"error": {"code": "INTERRUPTED", "detail": "the job goes on"}, "pid": name.pid, "oid": name.oid})
        view.say(f"the job goes on; take it up again: optimizing watch {name}; end it: optimizing cancel {name}")
        raise typer.Exit(EXIT_INTERRUPTED) from interrupt
    view.document(job)
    job_lines(view, job)
    raise typer.Exit(EXIT_BY_STATUS[job["status"]])


@cli.command(epilog=COMPARE_EXIT_CODES)
def compare(
    reference: Annotated[Path, typer.Argument(help="A .pt, .onnx or .engine.", metavar="REF", **A_FILE)],
    candidate: Annotated[Path, typer.Argument(help="What was made from it.", metavar="CAND", **A_FILE)],
    *,
    data: Annotated[
        Path | None, typer.Option(help="Images: a folder (of class folders) or archive.", exists=True)
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="Their COCO annotations, a JSON file.", **A_FILE)] = None,
    mode: Annotated[
        Literal["coverage", "smoke", "full", "auto"] | None,
        typer.Option(help="Which images; coverage, without --data smoke."),
    ] = None,
    sample_count: Annotated[int, typer.Option(min=1, help="smoke: images at random.")] = 32,
    per_class_k: Annotated[int, typer.Option(min=1, help="coverage: images of each class.")] = 1,
    max_total: Annotated[int, typer.Option(min=1, help="coverage and auto: images at most.")] = 5000,
    limit: Annotated[
        list[str] | None, typer.Option(help="A limit of your own, as often as needed: NAME=NUMBER.")
    ] = None,
    other_network: Annotated[
        bool, typer.Option("--other-network", help="Pruned or trained on: raw answers differ.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Where export_report.json and report.html go.", file_okay=False)] = Path(),
    strict: Annotated[bool, typer.Option("--strict", help="What auto leaves undecided is a failure.")] = False,
    device: Annotated[Literal["cpu", "gpu"], typer.Option(help="Where both models run.")] = "cpu",
    trust: Annotated[bool, typer.Option("--trust", help="Open files that can run code: only your own.")] = False,
    as_json: Json = False,
) -> None:
    """Prove here, without the service, that a model still answers like another; writes the proof down."""
    from app.library_variables import FIXED_VARIABLES

    os.environ.update(FIXED_VARIABLES)
    with session(DEFAULT_URL, None, as_json) as (_, view):
        from app.cli_compare import CompareWords
        from app.cli_compare import compare as run

        where, counts = (reference, candidate, data, annotations), (sample_count, per_class_k, max_total)
        if not run(view, CompareWords(*where, mode, *counts, limit or [], other_network, out, strict, device, trust)):
            raise typer.Exit(EXIT_FAILED)


@cli.command(epilog=EXIT_CODES)
def upload(
    file: Annotated[Path, typer.Argument(help="The file to store.", exists=True, dir_okay=False)],
    *,
    pid: Pid,
    name: Annotated[str | None, typer.Option(help="Its name there; left out, its own.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Store a file; the key that comes back names it in requests."""
    with session(url, key, as_json) as (client, view):
        stored = _uploaded(client, view, file, pid, name or file.name)
        view.document(stored)
        view.result(stored["key"])


@cli.command(epilog=EXIT_CODES)
def watch(job: Job, verbose: Verbose = False, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """Follow a job to its end; a connection that breaks is taken up where it broke."""
    from app.cli_request import only_job

    with session(url, key, as_json) as (client, view):
        name = only_job(job)
        _follow(client, view, name, client.job(name)["action"], verbose=verbose)


@cli.command(epilog=EXIT_CODES)
def jobs(
    pid: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    status: Annotated[str | None, typer.Option(help="queued, running, completed, failed or cancelled.")] = None,
    action: Annotated[str | None, typer.Option(help="Only this action.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 20,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List your jobs, newest first."""
    from app.cli_view import jobs_table

    with session(url, key, as_json) as (client, view):
        wanted = {"pid": pid, "status": status, "action": action}
        page = client.jobs(limit, {name: value for name, value in wanted.items() if value is not None})
        view.document(page)
        view.table(jobs_table(page["jobs"]))
        if page["next_cursor"]:
            view.say(f"[dim]there are older ones; --limit shows more than {limit}[/]")


@cli.command(epilog=EXIT_CODES)
def cancel(job: Job, url: Url = DEFAULT_URL, key: Key = None, as_json: Json = False) -> None:
    """End a job that is queued or running."""
    from app.cli_request import only_job
    from app.cli_view import styled

    with session(url, key, as_json) as (client, view):
        name = only_job(job)
        ended = client.cancel(name)
        view.document(ended)
        view.result(f"{name} {'is being ended' if ended['status'] == 'running' else styled(ended['status'])}")


@cli.command(epilog=EXIT_CODES)
def retry(
    job: Job,
    wait: Wait = True,
    verbose: Verbose = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Do a failed or cancelled job again, as a new job, and follow it to its end."""
    from app.cli_request import only_job

    with session(url, key, as_json) as (client, view):
        _accepted(client, view, client.retry(only_job(job)), wait=wait, verbose=verbose)


@cli.command(epilog=EXIT_CODES)
def fetch(
    job: Annotated[
        list[str], typer.Argument(help="PID/OID, and one artifact's name or none for all.", metavar="PID/OID [NAME]")
    ],
    to: Annotated[Path | None, typer.Option(help="The folder; left out, PID-OID here.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Download what a job made (or an upload), with digests checked; what is there already is not fetched again."""
    from app.cli_fetch import fetch as fetch_one
    from app.cli_request import job_and_rest, select_artifacts

    with session(url, key, as_json) as (client, view):
        name, rest = job_and_rest(job)
        folder = to or Path(f"{name.pid}-{name.oid}")
        found = select_artifacts(client.artifacts(name)["artifacts"], rest)
        fetched = [fetch_one(client, view, name, artifact, folder) for artifact in found]
        view.document({"pid": name.pid, "oid": name.oid, "folder": str(folder), "files": fetched})
        for file in fetched:
            note = "" if file["fetched_bytes"] or not file["size_bytes"] else " [dim](was there)[/]"
            view.result(f"{file['path']}{note}")


@cli.command(epilog=EXIT_CODES)
def kinds(
    action: Annotated[str | None, typer.Argument(help="Show this one's parameters.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """What can be done here, and what each takes."""
    from app.cli_request import find_kind
    from app.cli_view import kind_parameters_table, kinds_table

    with session(url, key, as_json) as (client, view):
        known = client.kinds()
        if action is None:
            view.document({"kinds": known})
            view.table(kinds_table(known))
        else:
            kind = find_kind(known, action)
            view.document(kind)
            view.table(kind_parameters_table(kind))


if __name__ == "__main__":
    main()
