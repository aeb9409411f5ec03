"""The shared folder: the bridge's process (`service`), what it writes (`mirror`) and what it takes in (`intake`).

Only `helper` and what it imports (`share`, `beneath`, `copies`, `frames`) ever touch the share, and they run in
processes of their own; everybody else asks them through `port`. Work that waits for the share or the broker is a
generator that `flows` runs, so that the steps of a drop (`taking`, `moves`, `requests`) stand in the order in which they
happen. `layout`, `decisions`, `receipts`, `intake_core`, `lanes`, `logcopies`, `rows`, `telling`, `workers`, `ops` and
`mounts` are pure.
"""
