"""What the fork server of `toolkit_export` imports, as the service's own does."""

from __future__ import annotations

import gc

import app.toolkit.pipeline  # noqa: F401

gc.collect()
gc.freeze()
