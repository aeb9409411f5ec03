"""What ``rigbus up`` runs: it starts the rig's processes, watches them, and leaves none behind.

``core`` decides (pure), ``supervisor`` is its shell, ``children`` holds the processes, ``guard`` is the rig's last
one; ``lifeline`` tells them that the supervisor is gone, ``folder`` is the rig's private folder, ``cards`` says who
is given which card.
"""
