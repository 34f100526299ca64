"""Optimizing API: an async REST job service that makes vision models ready for their device."""

__version__ = "0.1.0"
