"""The service's settings for kernel parity, for the toolkit."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from app.jobs.context import JobContext
from app.toolkit.parity import LIMITS, ParityLimits


def parity_limits(context: JobContext, precision: Literal["fp32", "fp16"]) -> ParityLimits:
    """The limits of a precision, as this service has them set."""
    return replace(
        LIMITS[precision],
        boxes_px=context.options[f"parity_{precision}_box_px"],
        scores=context.options[f"parity_{precision}_score"],
    )
