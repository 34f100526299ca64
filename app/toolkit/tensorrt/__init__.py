"""TensorRT engines: asked for, built, described, compared; TensorRT is not imported where a file or a log tells."""
