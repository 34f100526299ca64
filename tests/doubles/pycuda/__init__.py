"""A pycuda whose GPU is this machine's own memory: what `device_memory` needs of it, under its genuine names.

Found as `pycuda` with tests/doubles on the PYTHONPATH. What it cannot know: contexts, streams, and everything that a
real GPU does with an address. Importing `pycuda.autoinit` fails, because nothing of ours may make a context of its own.
"""
