"""The images that INT8 ranges are measured on: which ones, and as the network's input."""
