"""System calls of real code, counted, recorded and failed: what a disk may do to it, one call after the other.

``python -m syscalls.prefixes`` and ``python -m syscalls.failing`` (with ``PYTHONPATH=tests``) are programs of their own,
since they fork; the tests that run them stand in ``tests/bus`` and ``tests/bridge``.
"""
