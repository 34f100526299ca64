"""Settings: the environment, read once, checked together, frozen. A wrong combination refuses to start."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

IMAGE_WORKSPACE = Path("/workspace/shared")

SECRET_PREFIX = "whsec_"  # noqa: S105 - how Standard Webhooks marks a secret

JOB_OPTIONS = {
    "opset",
    "trust_checkpoints",
    "parity_fp32_box_px",
    "parity_fp32_score",
    "parity_fp16_box_px",
    "parity_fp16_score",
    "trt_workspace_mib",
    "trt_default_h",
    "trt_default_w",
    "trtexec_timeout_sec",
    "dla_cores",
}

SECRETS = ("api_keys", "callback_secret", "s3_secret_key", "mongo_url")
"""Each of these may come from a file instead, named by the setting with `_FILE` at its end."""

CommaList = Annotated[tuple[str, ...], NoDecode]
"""A tuple that is written `a,b,c` in the environment."""


def default_workspace() -> Path:
    """`/workspace/shared` where it exists (the images have it), else a folder that the user may write."""
    if IMAGE_WORKSPACE.is_dir() and os.access(IMAGE_WORKSPACE, os.W_OK):
        return IMAGE_WORKSPACE
    return Path.home() / ".local" / "share" / "optimizing-api"


class Settings(BaseSettings):
    """Every setting of the service; each field is an environment variable of the same name in upper case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    # Where it listens
    host: str | None = Field(None, description="Address to bind. Unset: loopback without API keys, else every address.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port. 0 takes a free one.")

    # Who may
    api_keys: SecretStr = Field(SecretStr(""), description="`key:uid` pairs, comma-separated. None: one local user.")
    api_keys_file: Path | None = Field(None, description="A file that holds API_KEYS instead, one pair a line.")
    local_uid: str = Field("0001", pattern=r"^[0-9]{1,18}$", description="The one user where no API key is set.")

    # Where things lie
    workspace_dir: Path = Field(default_factory=default_workspace, description="Work folders, stores and caches.")
    artifacts_dir: Path | None = Field(None, description="The local artifact store. Unset: WORKSPACE_DIR/store.")
    database_path: Path | None = Field(None, description="The SQLite file. Unset: WORKSPACE_DIR/state/records.sqlite3.")
    input_roots: CommaList = Field(
        ("/app/int8_calib_images",),
        description="Folders, besides WORKSPACE_DIR, that a request may name by absolute path; comma-separated.",
    )
    absolute_input_paths: bool = Field(True, description="Whether requests may name files by absolute path at all.")
    upload_max_mib: int = Field(8192, ge=1, description="Largest upload, in MiB.")
    artifact_store: Literal["local", "minio"] = Field("local", description="Where artifacts go: a folder, or S3.")
    record_store: Literal["sqlite", "mongo"] = Field("sqlite", description="Where records go: a file, or MongoDB.")

    # An S3 bucket for artifacts, with ARTIFACT_STORE=minio
    s3_endpoint: str | None = Field(None, description="MinIO or any S3 service: `http://minio:9000`.")
    s3_access_key: str | None = Field(None, description="Who asks there.")
    s3_secret_key: SecretStr | None = Field(None, description="The secret that belongs to S3_ACCESS_KEY.")
    s3_secret_key_file: Path | None = Field(None, description="A file that holds S3_SECRET_KEY instead.")
    s3_bucket: str = Field("optimizing", description="The bucket; made at start where that is allowed.")
    s3_region: str = Field("us-east-1", description="The bucket's region. MinIO takes any.")
    s3_public_endpoint: str | None = Field(
        None, description="S3_ENDPOINT as clients reach it. Set: downloads are redirected there. Unset: they pass here."
    )

    # MongoDB for records, with RECORD_STORE=mongo
    mongo_url: SecretStr | None = Field(None, description="`mongodb://user:password@host:27017/`.")
    mongo_url_file: Path | None = Field(None, description="A file that holds MONGO_URL instead.")
    mongo_database: str = Field("optimizing", pattern=r"^[A-Za-z0-9_-]{1,63}$", description="The database there.")
    mongo_driver: Literal["pymongo", "motor"] = Field(
        "pymongo", description="PyMongo's own asynchronous client, or Motor, which is past its end of life."
    )

    # How jobs run
    engine_build_concurrency: int = Field(3, ge=1, description="Engine builds at once, on all devices together.")
    job_cpu_concurrency: int = Field(2, ge=1, description="Light CPU jobs at once.")
    job_timeout_sec: float = Field(3600, gt=0, description="Time limit of a job, from the start of its process.")
    job_kill_grace_sec: float = Field(0.5, ge=0, description="From SIGTERM to SIGKILL when a job is ended early.")
    job_max_attempts: int = Field(3, ge=1, description="Starts of one job when the service dies under it.")
    job_lease_sec: float = Field(30, gt=0, description="How long a silent service keeps its jobs; renewed at half.")
    job_start_method: Literal["forkserver", "exec"] = Field("forkserver", description="How a job's process starts.")
    job_log_max_mib: int = Field(64, ge=1, description="A job whose log grows beyond this is ended, in MiB.")
    drain_timeout_sec: float = Field(20, ge=0, description="At SIGTERM, how long running jobs may still finish.")
    kind_packages: CommaList = Field((), description="More packages with `schemas` and `handlers`; comma-separated.")

    # TensorRT
    trt_workspace_mib: int = Field(2048, ge=1, description="Workspace of a build, in MiB, where a request names none.")
    trt_default_h: int = Field(640, ge=32, le=8192, description="Height that a dynamic ONNX is built for.")
    trt_default_w: int = Field(640, ge=32, le=8192, description="Width that a dynamic ONNX is built for.")
    trtexec_timeout_sec: float = Field(3600, gt=0, description="Time limit of one run of trtexec.")
    trt_timing_cache_dir: Path | None = Field(
        None, description="Timing caches, one a TensorRT version and GPU. Unset: WORKSPACE_DIR/timing_cache."
    )
    dla_cores: int | None = Field(
        None, ge=0, description="DLA cores of this machine, where only trtexec is installed, which cannot be asked."
    )
    gpu_exclusive_builds: bool = Field(
        False, description="One build at a time on the GPU: neighbours disturb the timing of its tactics."
    )

    # What a job accepts
    opset: int = Field(17, ge=11, le=20, description="ONNX opset of exports that name none.")
    trust_checkpoints: bool = Field(False, description="Open .pt files that run code. Only for files of your own.")
    git_sha: str | None = Field(
        None,
        pattern=r"^([0-9a-f]{7,64}|nogit)$",
        description="The commit in the names of versioned exports. Unset: the working directory's, or `nogit`.",
    )
    parity_fp32_box_px: float = Field(0.05, gt=0, description="FP32 proof: largest move of a box edge, in pixels.")
    parity_fp32_score: float = Field(1e-4, gt=0, description="FP32 proof: largest change of a score.")
    parity_fp16_box_px: float = Field(4.0, gt=0, description="FP16 proof: largest move of a box edge, in pixels.")
    parity_fp16_score: float = Field(3e-2, gt=0, description="FP16 proof: largest change of a score.")

    # Callbacks
    callback_url: str | None = Field(None, description="Where the end of a job is reported when the request says not.")
    callback_secret: SecretStr | None = Field(None, description="`whsec_` + base64. Unset: made once, kept in state/.")
    callback_secret_file: Path | None = Field(None, description="A file that holds CALLBACK_SECRET instead.")
    callback_allowed_hosts: CommaList = Field(
        (), description="Hosts and networks (10.0.0.0/8) that callbacks may reach besides public ones; comma-separated."
    )
    callback_timeout_sec: float = Field(15, gt=0, description="How long one delivery may take.")
    callback_retry_sec: Annotated[tuple[float, ...], NoDecode] = Field(
        (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        description="Waits between deliveries, in seconds; comma-separated. Standard Webhooks' own by default.",
    )

    @field_validator("input_roots", "kind_packages", "callback_allowed_hosts", "callback_retry_sec", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("workspace_dir", "artifacts_dir", "database_path", "trt_timing_cache_dir", mode="after")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        for secret in SECRETS:
            name, file = secret.upper(), getattr(self, f"{secret}_file")
            if file is not None and secret in self.model_fields_set:
                raise ValueError(f"{name} and {name}_FILE are both set; keep one of them")
            if file is not None and not file.is_file():
                raise ValueError(f"{name}_FILE names {file}, which is not a file; create it or unset it")
        self._check_stores()
        self.key_pairs()
        self.signing_secret()
        return self

    def _check_stores(self) -> None:
        """Raises ValueError where a store was chosen without what it needs."""
        given = {
            "S3_ENDPOINT": self.s3_endpoint,
            "S3_ACCESS_KEY": self.s3_access_key,
            "S3_SECRET_KEY": self.secret("s3_secret_key"),
        }
        missing = [name for name, value in given.items() if not value]
        if self.artifact_store == "minio" and missing:
            raise ValueError(f"ARTIFACT_STORE=minio needs {' and '.join(missing)}; set it, or ARTIFACT_STORE=local")
        if self.record_store == "mongo" and not self.secret("mongo_url"):
            raise ValueError(
                "RECORD_STORE=mongo needs MONGO_URL (mongodb://host:27017/); set it, or RECORD_STORE=sqlite"
            )
        for name, endpoint in (("S3_ENDPOINT", self.s3_endpoint), ("S3_PUBLIC_ENDPOINT", self.s3_public_endpoint)):
            parts = urlsplit(endpoint or "http://unset")
            is_plain = not parts.path.strip("/") and "@" not in parts.netloc
            if parts.scheme not in {"http", "https"} or not parts.hostname or not is_plain:
                raise ValueError(f"{name}: expected http://host:port or https://host, without a path or credentials")

    def secret(self, name: str) -> str | None:
        """A secret's text, from its setting or its file."""
        file: Path | None = getattr(self, f"{name}_file")
        value: SecretStr | None = getattr(self, name)
        if file is not None:
            return file.read_text().strip()
        return value.get_secret_value() if value is not None else None

    @property
    def store_dir(self) -> Path:
        return self.artifacts_dir or self.workspace_dir / "store"

    @property
    def jobs_dir(self) -> Path:
        return self.workspace_dir / "jobs"

    @property
    def timing_cache_dir(self) -> Path:
        return self.trt_timing_cache_dir or self.workspace_dir / "timing_cache"

    @property
    def cache_dir(self) -> Path:
        """What jobs keep for later ones and may be removed at any time: ranges of calibrations, timing caches."""
        return self.workspace_dir / "cache"

    @property
    def state_dir(self) -> Path:
        return self.workspace_dir / "state"

    @property
    def records_file(self) -> Path:
        return self.database_path or self.state_dir / "records.sqlite3"

    @property
    def bind_host(self) -> str:
        """The address to bind: with no key set, nobody but this machine may ask, unless HOST says otherwise."""
        return self.host or ("0.0.0.0" if self.key_pairs() else "127.0.0.1")  # noqa: S104

    @property
    def job_options(self) -> dict[str, Any]:
        """The settings that a job's process is told; they are part of the work's fingerprint."""
        return self.model_dump(include=JOB_OPTIONS)

    def signing_secret(self) -> str | None:
        """The secret that signs callbacks, if the settings name one. Raises ValueError that never shows it."""
        text = self.secret("callback_secret")
        if text is None:
            return None
        try:
            size = len(base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True))
        except ValueError:
            size = 0
        if not text.startswith(SECRET_PREFIX) or not 24 <= size <= 64:
            raise ValueError(f"CALLBACK_SECRET: expected `{SECRET_PREFIX}` and the base64 of 24 to 64 random bytes")
        return text

    def key_pairs(self) -> list[tuple[str, str]]:
        """(key, uid) pairs of API_KEYS or its file. Raises ValueError that never shows a key."""
        text = self.secret("api_keys") or ""
        pairs = []
        for number, entry in enumerate((part.strip() for part in text.replace("\n", ",").split(",")), 1):
            if not entry:
                continue
            key, _, uid = entry.rpartition(":")
            if len(key) < 8 or not (uid.isascii() and uid.isdigit()):
                raise ValueError(
                    f"API_KEYS: entry {number} is not `key:uid`; a key has 8 characters or more, a uid only digits"
                )
            pairs.append((key, uid))
        return pairs
