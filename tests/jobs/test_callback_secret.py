"""The signing secret that the service makes for itself."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import ValidationError

from app.config import Settings
from app.jobs.callbacks import load_secret


def test_it_is_made_once_whoever_comes_first_and_is_readable_by_nobody_else(settings: Settings) -> None:
    with ThreadPoolExecutor(16) as pool:
        secrets = set(pool.map(lambda _: load_secret(settings), range(64)))
    assert len(secrets) == 1
    (kept,) = settings.state_dir.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert kept.read_text() in secrets


@pytest.mark.parametrize(
    "secret", ["x", "whsec_", "whsec_c2hvcnQ=", "whsec_???", "c2VjcmV0IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXM="]
)
def test_a_secret_that_signs_nothing_is_refused_at_start_and_not_shown(secret: str) -> None:
    with pytest.raises(ValidationError, match="CALLBACK_SECRET: expected `whsec_`") as caught:
        Settings(callback_secret=secret)
    assert "input_value" not in str(caught.value)
