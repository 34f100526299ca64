"""Proof that an optimised model still answers like the original: kernels and pipelines, judged apart."""
