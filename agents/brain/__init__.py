"""The brain: a stateless logic engine. ``planner`` and ``core`` are pure, ``service`` is the process."""
