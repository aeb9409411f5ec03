"""The worker: it holds leases, runs what they ask for, and owes the broker what became of them.

``core`` decides (pure: ``books``, ``run``, ``holds``, ``outbox``, ``renewals``, in the words of ``events``), ``loop``
is its shell: one thread, one poller. ``main`` and ``model`` are the two processes, ``serve`` puts an agent into one,
``parent`` watches one that runs alone; ``spool`` keeps on the disk what is owed while it is in danger.
"""
