"""What can go wrong with a comparison of two models.

RequestError
├── ModelsDiffer                MODELS_DIFFER
└── InvalidVerification         INVALID_VERIFICATION
MachineError
└── VerificationFailed          VERIFICATION_FAILED
"""

from __future__ import annotations

from app.toolkit.errors import MachineError, RequestError


class ModelsDiffer(RequestError):
    """Two models that are no two forms of one: their tasks, classes, channels or answers differ."""

    code = "MODELS_DIFFER"


class InvalidVerification(RequestError):
    """The words of a verification do not fit together, or nothing could be judged by them."""

    code = "INVALID_VERIFICATION"


class VerificationFailed(MachineError):
    """The candidate does not answer like the reference, or that could not be decided and the request was strict."""

    code = "VERIFICATION_FAILED"
