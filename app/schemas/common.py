"""Shapes that every request and answer share: identifiers, file names, keys, the envelope and the typed error."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, WithJsonSchema
from pydantic_core import core_schema

MAX_NAME_BYTES = 200
"""Longest file name in UTF-8 bytes: file systems take 255, and suffixes such as `_stats.txt` are added."""

MAX_KEY_BYTES = 1024
"""S3's limit for an object key, https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html."""

# Characters that look like a path separator and that no normalisation maps to one.
_SEPARATOR_LOOKALIKES = frozenset("/\\∕⁄⧸⧵╱╲⟋⟍")  # noqa: RUF001

DFINE_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
"""How a D-FINE checkpoint comes: `config.json`, `model.safetensors` and `preprocessor_config.json` in one file."""

Uid = Annotated[str, Field(pattern=r"^[0-9]{1,18}$", description="User: digits.", examples=["0001"])]
Pid = Annotated[str, Field(pattern=r"^P[0-9]{1,18}$", description="Project: `P` and digits.", examples=["P0001"])]
Oid = Annotated[str, Field(pattern=r"^O[0-9]{1,18}$", description="Job: `O` and digits.", examples=["O0007"])]

Status = Literal["queued", "running", "completed", "failed", "cancelled"]
FINAL_STATUSES: frozenset[str] = frozenset({"completed", "failed", "cancelled"})


class StrictModel(BaseModel):
    """A request's shape: unknown fields are refused, and what came stays as it came."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _name_faults(name: str) -> Iterator[str]:
    """Why a file name is not acceptable, if it is not."""
    if not name:
        yield "is empty"
    if name.startswith(".") or name.endswith((".", " ")) or name != name.lstrip():
        yield "begins with a dot or a blank, or ends with one"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        yield f"is longer than {MAX_NAME_BYTES} bytes"
    if any(character in _SEPARATOR_LOOKALIKES for character in name):
        yield "holds a path separator or a character that looks like one"
    if any(unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} for character in name):
        yield "holds a character that cannot be seen"
    if unicodedata.normalize("NFKC", name) != unicodedata.normalize("NFC", name):
        yield "holds a character that stands for another (write it in its plain form)"


def check_name(name: str) -> str:
    """Returns a file name that is safe as one path segment. Raises ValueError saying what is wrong with it."""
    for fault in _name_faults(name):
        raise ValueError(f"the name {name[:80]!r} {fault}")
    return name


def check_key(key: str) -> str:
    """Returns an artifact key whose every segment is a safe name. Raises ValueError saying which is not."""
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise ValueError(f"a key has at most {MAX_KEY_BYTES} bytes, this one has more")
    for segment in key.split("/"):
        check_name(segment)
    return key


def check_input_location(location: str) -> str:
    """An absolute path on the server or an artifact key, neither with `.`, `..` or empty segments."""
    check_key(location[1:] if location.startswith("/") else location)
    return location


def check_output_name(path: str) -> str:
    """The file name in `path`; folders before it are dropped (S0). A path that climbs or is absolute is refused."""
    if path.startswith("/"):
        raise ValueError("expected a file name such as 'best_fp32.onnx', not an absolute path")
    return check_key(path).rsplit("/", 1)[-1]


FileName = Annotated[str, AfterValidator(check_name)]
KeyPath = Annotated[str, AfterValidator(check_key)]


class InputFile:
    """Marks a parameter that names a file (or folder) to be staged into the job's work folder.

    `companion` is staged beside it where it exists: `{stem}_manifest.json`.
    """

    def __init__(self, *suffixes: str, companion: str | None = None) -> None:
        self.suffixes = suffixes
        self.companion = companion

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self, handler(source))

    def __call__(self, location: str) -> str:
        check_input_location(location)
        if self.suffixes and not location.lower().endswith(self.suffixes):
            raise ValueError(f"expected a file that ends in {' or '.join(self.suffixes)}, got {location[-80:]!r}")
        return location


class OutputFile:
    """Marks the parameter that names the output. `default` is its name where the request gives none.

    `series` (input's stem -> series) has the inputs whose output is a version instead: `{series}-{tag}{suffix}`.
    """

    def __init__(self, suffix: str, default: str, series: Mapping[str, str] | None = None) -> None:
        self.suffix = suffix
        self.default = default
        self.series = series or {}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self, handler(source))

    def __call__(self, path: str) -> str:
        name = check_output_name(path)
        if not name.endswith(self.suffix) or name == self.suffix:
            raise ValueError(f"expected a name that ends in {self.suffix}, got {name[-80:]!r}")
        return name


class ImageFolder:
    """Marks a parameter that names images alone, as S0's `calib_dir` does, in any of the forms of a DataSource."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(check_input_location, handler(source))


class DataSource(StrictModel):
    """Images, and where there are any their labels, given the same way for every kind."""

    images: Annotated[
        str,
        AfterValidator(check_input_location),
        Field(min_length=1, description="`/folder` on the server, an archive (.zip, .tar, .tar.gz, .tgz) or a prefix."),
    ]
    annotations: Annotated[str, AfterValidator(check_input_location)] | None = Field(
        None, description="COCO annotations (JSON): a key or an absolute path."
    )
    sample: int | None = Field(None, ge=1, description="Use this many images, drawn by a fixed seed.")


ImageSize = Annotated[
    tuple[Annotated[int, Field(ge=32, le=8192)], Annotated[int, Field(ge=32, le=8192)]],
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 32, "maximum": 8192},
            "minItems": 2,
            "maxItems": 2,
            "description": "[H, W]: height and width in pixels.",
        }
    ),
]


class ErrorDetail(BaseModel):
    """Why a job failed: a stable code, what was expected, what came, what to try."""

    code: str = Field(pattern=r"^[A-Z0-9_]+$", examples=["UNSAFE_CHECKPOINT"])
    message: str
    expected: str | None = None
    received: str | None = None
    hint: str | None = None
