"""Pruning: masks that zero weights (S0's letter), and removal that takes channels out for good."""
