"""A trtexec that builds nothing and behaves, as far as its options, lines, files and exit codes go, like NVIDIA's.

Checked against: the option parsers of seven genuine releases, built from NVIDIA's sources and asked 139 command lines
(tests/assets/trt, replayed by tests/toolkit/test_trt_double.py); the lines and exit codes of NVIDIA's sources of
trtexec; the plan's header as `trtexec --getPlanVersionOnly` reads it.

What it cannot know: whether a real builder takes a graph, how long it takes, what libnvinfer prints of it (those lines
are from users' logs), how layers are fused, and which of them a real DLA takes: here convolutions and what is
element-wise go there and everything else stays on the GPU.

It plays the release that its name ends with (`trtexec-8.5`), or that it is told, one of `releases.RELEASES`. What it is
told comes from the environment (`TRTEXEC_DOUBLE_RELEASE`, `_SCENARIO`, `_PAUSE_SEC`, `_DLA_CORES`) or, where that is
not handed on, from a `trtexec.json` beside the name that was called, with the same words: `{"release": "8.5"}`.
"""
