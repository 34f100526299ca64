"""What can be said of the images and the compose file without Docker. docs/images.md says what could not be tried."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.__main__ import CLOSE_CONNECTIONS_SEC
from app.config import Settings
from tests.harness import ROOT, Service, free_port

TOOLS = ROOT / ".services" / "docker-tools"
DOCKERFILES = ("Dockerfile.x86", "Dockerfile.jetson")
REQUIREMENTS = ("docker/requirements-x86.txt", "docker/requirements-jetson.txt")
COMPOSE = "docker/compose.yaml"
OVERRIDES = ("docker/compose.gpu.yaml", "docker/compose.jetson.yaml")
SETTINGS = {name.upper() for name in Settings.model_fields}
NOT_OURS = {"PATH", "PYTHONDONTWRITEBYTECODE", "UV_COMPILE_BYTECODE", "UV_LINK_MODE", "UV_PYTHON_DOWNLOADS"}
OF_COMPOSE = {"MONGO_PASSWORD", "PUBLISH", "WHEELS"}
"""What the compose files ask for that is no setting of the service."""
GIVEN = {
    "API_KEYS": "a-long-random-key:0001",
    "S3_SECRET_KEY": "secretofs3",
    "MONGO_PASSWORD": "secretofmongo",
    "WHEELS": "/wheels",
}


def text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def instructions(path: str) -> list[tuple[str, str]]:
    """(`RUN`, `apt-get update ...`) of a Dockerfile: comments left out, continued lines joined."""
    lines = [line for line in text(path).splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def of(path: str, word: str) -> list[str]:
    return [rest for name, rest in instructions(path) if name == word]


# -- the tools ----------------------------------------------------------------------------------------------------
def run(tool: str, *words: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    program = TOOLS / tool
    if not program.exists():
        message = f"{program.name} is not there; `bash tests/docker/install.sh` puts it into .services/"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return subprocess.run(
        [program, *words],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def compose(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`docker compose config`; a docker/.env that somebody has is not read."""
    nothing = tmp_path / "empty.env"
    nothing.touch()

    def config(*files: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        named = [word for file in files for word in ("-f", str(ROOT / file))]
        words = ["--env-file", str(nothing), *named, "config", "--format", "json"]
        return run("compose/docker-compose", *words, environment=environment)

    return config


@pytest.fixture
def composed(compose: Callable[..., subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    done = compose(COMPOSE, **GIVEN)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


# -- Dockerfiles --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", DOCKERFILES)
def test_hadolint_has_nothing_to_say(path: str) -> None:
    done = run("bin/hadolint", ROOT / path)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_hadolint_speaks_where_it_should(tmp_path: Path) -> None:
    careless = tmp_path / "Dockerfile"
    careless.write_text("FROM ubuntu:latest\nRUN apt-get install -y curl\n")
    assert run("bin/hadolint", careless).returncode == 1


@pytest.mark.parametrize("path", DOCKERFILES)
def test_nobody_is_root_and_tini_is_process_one(path: str) -> None:
    assert of(path, "USER") == ["10001"]
    assert json.loads(of(path, "ENTRYPOINT")[-1]) == ["/usr/bin/tini", "--"]
    assert any(re.search(r"apt-get install .*\btini\b", command) for command in of(path, "RUN"))
    assert json.loads(of(path, "CMD")[-1]) == ["python", "-m", "app"]
    assert (of(path, "EXPOSE"), of(path, "VOLUME")) == (["8000"], ["/workspace/shared"])


@pytest.mark.parametrize("path", DOCKERFILES)
def test_what_goes_in_is_pinned_and_hashed(path: str) -> None:
    for image in [base.partition("=")[2] for base in of(path, "ARG") if base.startswith("BASE=")] + of(path, "FROM"):
        name = image.split()[0]
        assert name in {"${BASE}", "scratch"} or re.search(r":[^:]*\d[^:]*$", name), name
        assert ":latest" not in name
    assert not of(path, "ADD"), "ADD fetches from the network without a hash"
    commands = " ".join(of(path, "RUN"))
    assert not re.search(r"\b(curl|wget|pip3?) ", commands.replace("uv pip ", ""))
    assert "://" not in commands
    for command in re.findall(r"uv pip install [^&]*", commands):
        assert re.search(r"--require-hashes|--no-index|--build-constraint requirements.lock", command), command
        assert "--no-deps" in command


@pytest.mark.parametrize("path", DOCKERFILES)
def test_an_image_carries_no_secret(path: str) -> None:
    names = {pair.partition("=")[0] for rest in of(path, "ENV") for pair in rest.split()} - {""}
    assert names <= SETTINGS | NOT_OURS
    for name in names | {rest.partition("=")[0] for rest in of(path, "ARG")}:
        assert not re.search(r"KEY|SECRET|PASSWORD|TOKEN|MONGO_URL", name), name
    assert 'licenses="AGPL-3.0-only"' in of(path, "LABEL")[0]


@pytest.mark.parametrize("path", DOCKERFILES)
def test_the_health_check_checks(path: str, service: Service) -> None:
    """The command itself, against a service that runs and against nobody."""
    _, command = of(path, "HEALTHCHECK")[0].split(" CMD ")
    program, *words = json.loads(command)
    assert program == "python"
    port = service.url.rpartition(":")[2]
    for number, expected in ((port, 0), (str(free_port()), 1)):
        done = subprocess.run(
            [sys.executable, *words], env={"PORT": number}, capture_output=True, timeout=30, check=False
        )
        assert done.returncode == expected, done.stderr


# -- what is installed --------------------------------------------------------------------------------------------
def pins(path: str) -> dict[tuple[str, str], set[str]]:
    """The hashes of each (name, version) of a lock."""
    found: dict[tuple[str, str], set[str]] = {}
    for block in re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", text(path), flags=re.M)):
        pin = re.match(r"([\w.-]+)==([^\s;]+)", block)
        if pin:
            found.setdefault((pin[1], pin[2]), set()).update(re.findall(r"sha256:(\w{64})", block))
    return found


@pytest.mark.parametrize("path", REQUIREMENTS)
def test_an_image_has_the_lock_s_versions_and_no_tool_of_developers(path: str) -> None:
    lock, image = pins("requirements.lock"), pins(path)
    assert len(image) > 50
    assert all(image.values()), "each has a hash"
    assert "://" not in text(path)
    for (name, version), hashes in image.items():
        if name == "onnxruntime-gpu":
            assert ("onnxruntime", version) in lock, "the same version as the lock's onnxruntime"
        else:
            assert hashes <= lock.get((name, version), set()), f"{name} {version}: run `bash docker/lock.sh`"
    names = {name for name, _ in image}
    assert not names & {"pytest", "ruff", "mypy", "schemathesis", "pre-commit"}
    needed = set(
        re.findall(r'"([\w-]+)>=', text("pyproject.toml").partition("dependencies = [")[2].partition("\n]")[0])
    )
    replaced = {"onnxruntime"} if "x86" in path else {"torch", "torchvision"}
    assert needed - names == replaced


def test_a_jetson_gets_no_torch_and_no_cuda_of_the_index() -> None:
    names = {name for name, _ in pins("docker/requirements-jetson.txt")}
    assert not [name for name in names if re.match(r"torch(vision)?$|triton$|nvidia-(?!ml-py$)|cuda-", name)]
    assert {"sympy", "networkx", "jinja2", "fsspec", "filelock"} <= names, "what torch needs is there all the same"


# -- the build's context ------------------------------------------------------------------------------------------
def sent(path: str) -> bool:
    """Whether .dockerignore lets a path through: the last pattern that fits it or a folder above it decides."""
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    is_sent = True
    for line in text(".dockerignore").splitlines():
        pattern = line.strip().lstrip("!").removeprefix("**/")
        if pattern and not line.startswith("#") and any(fnmatch.fnmatch(step, pattern) for step in above + parts):
            is_sent = line.startswith("!")
    return is_sent


@pytest.mark.parametrize(
    "path",
    [
        ".git/config", ".venv/bin/python", ".services/minio", "tests/assets/pills/pills_yolov8n.pt", "docker/.env",
        ".env", "docker/compose.yaml", "app/__pycache__/main.cpython-312.pyc", "demo-workspace/state",
    ],
)  # fmt: skip
def test_the_context_is_small_and_has_no_secret(path: str) -> None:
    assert not sent(path)


@pytest.mark.parametrize("path", DOCKERFILES)
def test_what_a_dockerfile_copies_is_there_and_is_sent(path: str) -> None:
    copied = [word for rest in of(path, "COPY") if "--from" not in rest for word in rest.split()[:-1]]
    copied += re.findall(r"type=bind,source=([^,\s]+)", " ".join(of(path, "RUN")))
    assert len(copied) >= 6
    for source in copied:
        assert (ROOT / source).exists(), source
        assert sent(source), source


# -- compose ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("override", ["", *OVERRIDES])
def test_compose_takes_the_files(override: str, compose: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = compose(*filter(None, (COMPOSE, override)), **GIVEN)
    assert (done.returncode, done.stderr) == (0, "")


def test_compose_refuses_a_key_that_is_none(
    compose: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(text(COMPOSE).replace("shm_size:", "shm_sizes:"))
    done = compose(wrong, **GIVEN)
    assert done.returncode != 0
    assert "shm_sizes" in done.stderr


@pytest.mark.parametrize("name", ["API_KEYS", "S3_SECRET_KEY", "MONGO_PASSWORD"])
@pytest.mark.parametrize("value", [None, ""])
def test_compose_does_not_start_without_a_secret(
    name: str, value: str | None, compose: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    others = {key: given for key, given in GIVEN.items() if key != name}
    done = compose(COMPOSE, **others, **({} if value is None else {name: value}))
    assert done.returncode != 0
    assert name in done.stderr
    assert "docker/.env" in done.stderr


def test_the_service_starts_with_what_compose_gives_it(
    composed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment is settings only, and they are settings that go together."""
    api = composed["services"]["api"]
    assert set(api["environment"]) <= SETTINGS
    for given in api["secrets"] + api["configs"]:
        source = composed["secrets" if given in api["secrets"] else "configs"][given["source"]]
        content = source.get("content") or GIVEN[source["environment"]]
        (tmp_path / Path(given["target"]).name).write_text(content)
        assert (given["uid"], given["mode"]) == ("10001", "0400")
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in api["environment"].items():
        monkeypatch.setenv(name, value.replace("/run/secrets", str(tmp_path)))
    settings = Settings()
    assert (settings.artifact_store, settings.record_store) == ("minio", "mongo")
    assert settings.bind_host == "0.0.0.0"
    assert settings.secret("mongo_url") == "mongodb://optimizing:secretofmongo@mongo:27017/?authSource=admin"
    (user,) = json.loads(composed["configs"]["s3_users"]["content"])["identities"]
    assert user["credentials"] == [{"accessKey": settings.s3_access_key, "secretKey": settings.secret("s3_secret_key")}]
    grace = float(api["stop_grace_period"].removesuffix("s"))
    assert grace > settings.drain_timeout_sec + CLOSE_CONNECTIONS_SEC + settings.job_kill_grace_sec


def test_only_the_service_is_reached_from_outside(composed: dict[str, Any]) -> None:
    services = composed["services"]
    assert set(services) == {"api", "s3", "mongo"}
    assert [port["host_ip"] for port in services["api"]["ports"]] == ["127.0.0.1"]
    for name, service in services.items():
        assert "ports" not in service or name == "api"
        assert service["restart"] == "unless-stopped"
        assert "core" in service["ulimits"], "a core file would hold a user's model"
        assert {volume["type"] for volume in service["volumes"]} == {"volume"}
        assert name == "api" or ("healthcheck" in service and not service["image"].endswith(":latest"))
        shown = json.dumps(service)
        assert not [secret for secret in GIVEN.values() if secret in shown], "a secret is a file, and no variable"
    assert {need["condition"] for need in services["api"]["depends_on"].values()} == {"service_healthy"}
    assert set(composed["volumes"]) == {"workspace", "s3", "mongo", "mongo-config"}


def test_what_compose_asks_for_is_explained() -> None:
    asked = set(re.findall(r"\$\{(\w+)", "".join(text(file) for file in (COMPOSE, *OVERRIDES))))
    asked |= set(re.findall(r"environment: (\w+) }", text(COMPOSE)))
    assert asked <= SETTINGS | OF_COMPOSE
    explained = set(re.findall(r"^(?:# )?([A-Z][A-Z0-9_]*)=", text("docker/.env.example"), re.M))
    assert explained == asked - {"WHEELS"}
