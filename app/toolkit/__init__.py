"""The engineering: models, export, proof, measurement. No web, no database, no job; usable from a notebook.

Start at `pipeline.export_and_prove` (a checkpoint in, a proven ONNX file out) and `stats.model_stats`.
Importing it makes no CUDA call, opens no connection and starts no thread, so a fork server may preload it.
"""
