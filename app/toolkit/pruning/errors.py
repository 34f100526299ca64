"""What can be wrong with a pruning.

RequestError
├── InvalidPruning              INVALID_PRUNING
├── StructureNotPrunable        STRUCTURE_NOT_PRUNABLE
└── TargetUnreachable           TARGET_UNREACHABLE
"""

from __future__ import annotations

from app.toolkit.errors import RequestError


class InvalidPruning(RequestError):
    """An option of pruning is outside of what it may be."""

    code = "INVALID_PRUNING"


class StructureNotPrunable(RequestError):
    """Channels cannot leave this network: its structure is not one that the dependency graph follows."""

    code = "STRUCTURE_NOT_PRUNABLE"


class TargetUnreachable(RequestError):
    """No ratio leaves as little as was asked for."""

    code = "TARGET_UNREACHABLE"
