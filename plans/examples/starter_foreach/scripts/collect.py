"""Prints what was found, in the order of the numbers."""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    folder = parser.parse_args().results
    results = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    for result in sorted(results, key=lambda one: one["number"]):
        print(f"{result['number']} = {' · '.join(map(str, result['factors']))}")


if __name__ == "__main__":
    main()
