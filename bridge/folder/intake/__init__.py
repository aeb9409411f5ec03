"""Inwards: a drop in the inbox becomes a batch, exactly once, with a receipt; so do request files.

The other doors go the same steps (`taking`, `moves`).
"""
