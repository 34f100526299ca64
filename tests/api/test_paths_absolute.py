"""Absolute paths on the server, for debugging: where they may lead, after links are resolved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import SECRET, Service


def _links(folder: Path, outside: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, target in (("link.txt", outside / "secret.txt"), ("linked", outside), ("twice", folder / "linked")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)


def _refused(service: Service, parameters: dict[str, object]) -> None:
    answer = service.post("echo", "P000998", parameters)
    assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")


def test_an_absolute_path_is_judged_after_its_links_are_resolved(service: Service, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    inside = service.workspace / "links"
    _links(inside, tmp_path)
    for location in ("link.txt", "linked/secret.txt", "twice/secret.txt"):
        _refused(service, {"input_path": f"{inside}/{location}"})
    for folder in ("linked", "twice"):
        _refused(service, {"input_path": "models/a.txt", "data": {"images": f"{inside}/{folder}"}})
    (inside / "real.txt").write_text("real")
    (inside / "alias.txt").unlink(missing_ok=True)
    (inside / "alias.txt").symlink_to(inside / "real.txt")
    assert service.run("echo", "P000998", {"input_path": f"{inside}/alias.txt"})["metrics"]["size_bytes"] == 4


@pytest.mark.parametrize(
    "location",
    ["/etc/passwd", "/proc/self/environ", "/dev/zero", "/app/int8_calib_images", "/app/int8_calib_images_x/a"],
)
def test_absolute_paths_elsewhere(service: Service, location: str) -> None:
    answer = service.post("echo", "P000998", {"input_path": location})
    if location == "/app/int8_calib_images":  # allowed by default, but it is no file
        path = answer.headers["location"]
        assert service.wait(path)["error"]["code"] == "INPUT_NOT_FOUND"
    else:
        assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST")


def test_absolute_paths_can_be_turned_off_and_other_roots_named(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.txt").write_text("a")
    parameters = {"input_path": f"{tmp_path}/root/a.txt"}
    with_root = make_service("with", JOB_START_METHOD="exec", INPUT_ROOTS=f"{tmp_path}/root")
    assert with_root.run("echo", "P0001", parameters)["status"] == "completed"
    without = make_service(
        "without", INPUT_ROOTS=f"{tmp_path}/root", ABSOLUTE_INPUT_PATHS="false", JOB_START_METHOD="exec"
    )
    answer = without.post("echo", "P0001", parameters)
    assert answer.status_code == 422
    assert "ABSOLUTE_INPUT_PATHS" in answer.json()["detail"]


@pytest.mark.slow
def test_a_file_that_holds_a_secret_is_no_input(make_service: Callable[..., Service], tmp_path: Path) -> None:
    """Wherever it lies: an operator may keep it beside the images."""
    folder = tmp_path / "roots"
    folder.mkdir()
    secrets = {"S3_SECRET_KEY_FILE": "s3.txt", "MONGO_URL_FILE": "mongo.txt", "CALLBACK_SECRET_FILE": "callback.txt"}
    for name in ("plain.txt", *secrets.values()):
        (folder / name).write_text(SECRET)
    files = {setting: str(folder / name) for setting, name in secrets.items()}
    service = make_service(INPUT_ROOTS=str(folder), CALLBACK_SECRET="(unset)", **files)
    assert service.post("echo", "P1", {"input_path": str(folder / "plain.txt")}).status_code == 202
    for name in secrets.values():
        answer = service.post("echo", "P1", {"input_path": str(folder / name)})
        assert (answer.status_code, answer.json()["code"]) == (422, "INVALID_REQUEST"), name
