"""INT8: calibration, static and dynamic quantisation, the proof of what it costs, and its repair."""
