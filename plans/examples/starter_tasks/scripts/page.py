"""Makes a Markdown page of the facts."""

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--title", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    facts = json.loads(options.facts.read_text(encoding="utf-8"))
    page = "\n".join([f"# {options.title}", "", *(f"- {name}: {fact}" for name, fact in facts.items()), ""])
    options.out.write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
