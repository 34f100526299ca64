"""Takes the GPU's primary context; there is none to take."""
