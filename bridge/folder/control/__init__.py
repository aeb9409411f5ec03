"""Commands by files: edits of the mirror's own files (`control`), and stop, abort and kill in ``signals/``."""
