"""Prints the words, the most frequent first."""

import json
import sys
from collections import Counter
from pathlib import Path


def main() -> None:
    words = Counter(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    for word, count in words.most_common():
        print(f"{count:4d}  {word}")


if __name__ == "__main__":
    main()
