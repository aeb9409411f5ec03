"""Outwards: the broker's state drawn into the folder, and compared with what stands there."""
