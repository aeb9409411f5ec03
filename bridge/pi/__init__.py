"""What runs where the network is: on a machine that has nothing of the rig but its shared folder.

`notify` carries alerts to lamps, phones and webhooks. `outbox`, `deadman` and `hue_core` are pure; `web` is the only one that
opens connections, `sinks` and `hue` speak through it, and `service` gives each sink a thread, so that one that hangs holds up
no other.
"""
