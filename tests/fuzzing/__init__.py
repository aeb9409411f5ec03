"""What reads the bytes of others, as targets for fuzzers: wire, plan.md, the JSON of the share, configuration.

``tests/test_fuzz.py`` plays them with hypothesis; ``make fuzz ARGS="--seconds 60"`` with atheris, guided by coverage.
"""
