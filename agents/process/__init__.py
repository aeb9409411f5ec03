"""Process control: nothing that an attempt starts outlives it.

``api`` is what callers see; ``linux`` is the one file with Linux-only calls (it reads ``tree``), ``portable`` the
second implementation; ``child`` is what both share.
"""
