"""Counts the words of a text file into a JSON file."""

import json
import re
import sys
from collections import Counter
from pathlib import Path


def main() -> None:
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    words = Counter(re.findall(r"\w+", text.lower()))
    Path(sys.argv[2]).write_text(json.dumps(words), encoding="utf-8")
    print(f"{len(words)} different words")


if __name__ == "__main__":
    main()
