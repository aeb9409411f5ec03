"""What `rigbus doctor` looks at, a file a subject: probes gather facts, pure ``judge_*`` functions make findings of them.

Laws: nothing is made that is not removed again; no folder is touched by the command's own process before a child has
shown that it answers; a fact that cannot be had is a finding, never an exception.
"""
