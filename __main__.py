"""``python -m rigbus``: the same as the command ``rigbus``. The supervisor starts its processes this way."""

from __future__ import annotations

from .tools.cli import main

if __name__ == "__main__":
    main()
