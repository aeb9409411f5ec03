"""The brain: a stateless logic engine. ``planner``, ``messages`` and ``core`` are pure, ``service`` is the process."""
