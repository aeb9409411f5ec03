"""``rigbus bench``: figures of this machine through real rigs, beside the limits of the machine in the same run.

``verbs`` is the command; ``rig`` the private rig; ``bus shell dag scale mirror`` measure one thing each and hand back
an :class:`~.figures.Outcome`; ``limits`` is what this machine can do without us; ``page`` writes docs/benchmarks.md.
"""
