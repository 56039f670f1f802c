"""Words and long sentences of the Markdown pages.

    python .ci/words.py                       how many, page by page
    python .ci/words.py docs/start --list     the sentences of more than 30 words
    python .ci/words.py --at COMMIT           the pages as they were

Code, formulas, generated tables of figures and addresses are not counted. A cell of a table is a
sentence of its own.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 30  # words
FENCE = re.compile(r"^ {0,3}(```|~~~)")
END = re.compile(r"(?<=[.!?])[*_\"')]*\s+(?=[A-Z*_`\[\"'(0-9])|(?<=[.!?:])\s*\n\s*[-*] ")
ABBREVIATIONS = re.compile(r"\b(?:e\.g|i\.e|et al|vs|no|cf|approx|eq)\.", re.I)


def prose(page: str) -> Iterator[str]:
    """The paragraphs, list items and cells of a page."""
    lines: list[str] = []
    fenced = False

    def block() -> Iterator[str]:
        if lines:
            yield " ".join(lines)
            lines.clear()

    for line in page.splitlines():
        text = line.strip()
        if FENCE.match(line):
            fenced = not fenced
            yield from block()
        elif fenced or line.startswith(("    ", "<!--", "<img")):
            yield from block()
        elif text.startswith("|"):
            yield from block()
            yield from (cell.strip() for cell in text.strip("|").split("|"))
        elif not text or text.startswith("#") or re.match(r"[-*] |\d+\. ", text):
            yield from block()
            if text:
                lines.append(re.sub(r"^(?:#+|[-*]|\d+\.) ", "", text))
            if text.startswith("#"):
                yield from block()
        else:
            lines.append(text)
    yield from block()


def plain(text: str) -> str:
    """Text without what is no word: code becomes one word, links their text."""
    text = re.sub(r"(`+).*?\1", "CODE", text)
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"<[^>]*>", "", text)
    return ABBREVIATIONS.sub(lambda found: found[0].replace(".", ""), text)


def sentences(page: str) -> Iterator[str]:
    """The sentences of a page, a cell of a table or an item of a list being one at least."""
    for text in prose(page):
        yield from (part for part in END.split(plain(text)) if part and part.strip())


def words(sentence: str) -> int:
    """How many words it has: whatever has a letter, numbers being none.

    >>> words("With `K` classes there are 3 numbers.")
    6
    """
    return sum(bool(re.search(r"[^\W\d_]", word)) for word in plain(sentence).split())


def pages(commit: str | None) -> dict[str, str]:
    """The pages by their names: those of the folder, or of a commit."""
    if commit is None:
        found = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
        found = [path for path in found if "_build" not in path.parts]
        return {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in found}

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout

    names = git("ls-tree", "-r", "--name-only", commit, "README.md", "docs").splitlines()
    return {name: git("show", f"{commit}:{name}") for name in names if name.endswith(".md")}


def main() -> None:
    """Print the counts, or the long sentences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("under", nargs="*", help="pages or folders; default: README.md and docs")
    parser.add_argument("--list", action="store_true", help="print the long sentences")
    parser.add_argument("--at", metavar="COMMIT", help="instead of the files as they are")
    args = parser.parse_args()
    total = [0, 0]
    for name, page in pages(args.at).items():
        if name.endswith("/tables.md"):  # as `compare` wrote it
            continue
        if args.under and not any(Path(name).is_relative_to(under) for under in args.under):
            continue
        found = [(words(sentence), sentence) for sentence in sentences(page)]
        long = [sentence for number, sentence in found if number > LONGEST]
        number = sum(number for number, _ in found)
        total = [total[0] + number, total[1] + len(long)]
        print(f"{number:7} words {len(long):4} long  {name}")
        if args.list:
            print(*(f"    {words(text)}: {text}" for text in long), sep="\n")
    print(f"{total[0]:7} words {total[1]:4} sentences of more than {LONGEST} words")


if __name__ == "__main__":
    main()
