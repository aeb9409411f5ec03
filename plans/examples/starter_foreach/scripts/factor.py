"""Finds the prime factors of one number."""

import argparse
import json
from pathlib import Path


def factors_of(number: int) -> list[int]:
    found, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    return [*found, number] if number > 1 else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    result = {"number": options.number, "factors": factors_of(options.number)}
    options.out.parent.mkdir(exist_ok=True)
    # Under another name first: a task that is run again replaces its result, and nobody reads half of one.
    unfinished = options.out.with_suffix(".part")
    unfinished.write_text(json.dumps(result), encoding="utf-8")
    unfinished.replace(options.out)
    print(f"{options.number} = {' · '.join(map(str, result['factors']))}")


if __name__ == "__main__":
    main()
