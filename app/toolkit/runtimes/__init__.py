"""What runs a model: one seam, `base.Runtime`, and one file for each runtime."""
