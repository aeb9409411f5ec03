"""Writes the sentences that are to be counted."""

import sys
from pathlib import Path

SENTENCES = """\
A plan is a folder.
A task is a command of a plan.
A worker runs a task.
"""


def main() -> None:
    Path(sys.argv[1]).write_text(SENTENCES, encoding="utf-8")
    print(f"{len(SENTENCES.splitlines())} sentences in {sys.argv[1]}")


if __name__ == "__main__":
    main()
