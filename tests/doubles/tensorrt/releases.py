"""The releases that can be played, and their names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

NAMES = Path(__file__).parents[2] / "assets" / "trt" / "trt_python_names.json"

NOT_IN_8_5 = {
    "BuilderFlag": "VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME",
    "IBuilderConfig": "hardware_compatibility_level builder_optimization_level max_aux_streams",
    "Runtime": "engine_host_code_allowed",
}
NOT_IN_8_2 = {
    "Builder": "max_threads",
    "IBuilderConfig": "set_memory_pool_limit get_memory_pool_limit",
    "IExecutionContext": "execute_async_v3 set_input_shape set_tensor_address get_tensor_address get_tensor_shape "
    "get_tensor_strides infer_shapes",
    "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_shape get_tensor_dtype get_tensor_mode "
    "get_tensor_profile_shape",
}
CLASSES_NOT_IN_8_2 = {"MemoryPoolType", "TensorIOMode"}
RELEASES = ("8.2.1", "8.5.3", "8.6.1", "10.0.1", "10.3.0", "10.16.1.11", "11.0.0.114", "11.4.0.106")

Names = Mapping[str, str]
"""The members by class, as the file has them: enum members with their numbers."""


@cache
def names_of(release: str) -> Names:
    if release == "8.5.3":
        return _without(names_of("8.6.1"), NOT_IN_8_5)
    if release == "8.2.1":
        kept = _without(names_of("8.5.3"), NOT_IN_8_2)
        return {owner: members for owner, members in kept.items() if owner not in CLASSES_NOT_IN_8_2}
    names: Names = json.loads(NAMES.read_text())[release]
    return names


def _without(names: Names, gone: Names) -> Names:
    return {
        owner: " ".join(one for one in members.split() if one.partition("=")[0] not in gone.get(owner, "").split())
        for owner, members in names.items()
    }
