"""The broker's pure core: what peers say goes in, rows and messages come out. No I/O, no clock, no randomness.

``core`` is the whole, made of one layer a file: ``ledger`` (its memory, of the records in ``model``), ``lifecycle``,
``leasing``, ``submitting``, ``judging``, ``operating``, ``seating``, ``asking`` …; ``matching`` says which task goes
to which worker, ``checks`` reads what a peer sent. ``why`` next to it answers why something does not move.
"""
