"""The engineering: models, export, proof, measurement. No web, no database, no job; usable from a notebook.

Start at `pipeline.export_and_prove` (a checkpoint in, a proven ONNX file out) and `stats.model_stats`.
Importing it makes no CUDA call, opens no connection and starts no thread, so a fork server may preload it.
"""

from __future__ import annotations

import os

# Since 1.29 ONNX Runtime's Linux wheels report each session to their maker: an uploader thread at import (which a fork
# would tear), an identifier on disk, model names over the network. It reads this once, before anything else of it runs.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
