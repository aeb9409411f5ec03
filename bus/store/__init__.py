"""The durable queue on disk: SQLite, the small files beside it, and the ways back when it is damaged.

``store`` writes (rows of ``records``), ``reading`` reads; ``tail``, ``pages`` and ``checkpoints`` notice what was
lost; ``examining``, ``salvaging``, ``repairing`` and ``backup`` are for a database that was; ``ballast`` keeps room
for results on a full disk, ``room`` decides about it (pure).
"""
