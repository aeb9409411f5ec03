"""A deterministic simulator: the rig's real cores in one thread, over a network, disks and clocks that lie by a seed.

Real are the broker's core with its rows (``rigbus.bus``), the worker's core, and the whole of the brain but its sockets. Played
are the network, the disk, the processes and what tasks do. One seed is one history: `python -m simulator --seed N --trace`.

- `world`: the clock and what is due; processes that are killed, stopped and started; the network.
- `disk`: the store as rows in memory, whose last commits a power loss may take.
- `broker`, `worker`, `client`, `brain`: a shell around each core.
- `faults`: what goes wrong, and when it stops.
- `checkers`: what must hold at every commit, at every message, and at the end.
- `mutants`: defects that the checkers must find.
- `history`: one seed from its beginning to its verdict.
"""
