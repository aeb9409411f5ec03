"""Writes the list: each element needs an `id` of its own, the other fields are free."""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    items = [{"id": f"n{number}", "number": number} for number in range(9_990, 9_990 + options.count)]
    options.out.write_text(json.dumps({"items": items}, indent=1), encoding="utf-8")
    print(f"{len(items)} numbers")


if __name__ == "__main__":
    main()
