"""Write the Python language reference, as CPython carries it, to a text file.

About 465,000 characters that every Python has in `pydoc_data.topics`, in the order of the topics' names. With
``--first N`` only the first N characters, up to the end of a paragraph.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from pydoc_data.topics import topics


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--first", type=int, metavar="N")
    arguments = parser.parse_args()
    text = reference()
    if arguments.first is not None:
        text = text[: text.rindex("\n\n", 0, arguments.first)] + "\n"
    arguments.file.parent.mkdir(parents=True, exist_ok=True)
    arguments.file.write_text(text, "utf-8")


def reference() -> str:
    """All topics in alphabetical order, a blank line between them."""
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


if __name__ == "__main__":
    main()
