"""The broker process: sockets, clock and disk around the pure core.

``broker`` is the loop; ``premises`` is where it may run, ``outgoing`` and ``publishing`` are what it sends,
``completing`` adds what only the store knows; ``housekeeping`` removes what forgotten batches leave (``leftovers``
keeps the books); ``log_questions`` answers from the event log, ``inflow`` watches what ``connections`` make it hold.
"""
