"""S4 E-6: the checkpoints of a two-stage training, exported and proven by one command (`scripts/export_onnx.sh`)."""
