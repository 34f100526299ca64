"""Tiny kinds of job without heavy libraries, found by the setting `KIND_PACKAGES=tests.kinds`."""
