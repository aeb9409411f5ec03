"""A chaos campaign: a real rig under work, its processes killed and stopped at random by a seed, and a judge over it all.

`python -m chaos --seed N --rounds N --tasks N`. One JSONL file, the **history**, is written by everybody who sees something:
by the campaign (what it submitted and heard, whom it killed), by a follower of the event log, and by each command itself
(when it began and ended, under which token). The judge reads that file alone.

- `work`: what is submitted, by the seed; the script that every command is.
- `schedule`: whom each round hurts, by the seed.
- `history`: the file: how it is written and read.
- `rig`: `rigbus up` and its processes as the kernel shows them: found, signalled, measured.
- `clients`: the threads that submit and follow.
- `campaign`: the rounds, the healing, the end.
- `snapshot`: what the rig's database holds when all is over.
- `judge`: history in, violations out. Pure.
- `figures`: history in, summary out. Pure.
"""
