"""What ``rigbus up`` runs: it starts the rig's processes, watches them, and leaves none behind.

``core`` decides (pure), ``supervisor`` is its shell, ``children`` holds the processes, ``guard`` is the rig's last
one; ``obituaries`` keeps what the broker must hear of the dead, ``lifeline`` tells the living that the supervisor is
gone, ``folder`` is the rig's private folder, ``cards`` says who is given which card.
"""
