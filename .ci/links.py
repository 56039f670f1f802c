"""Internal links of the Markdown pages: every file must exist, and every anchor be a heading.

    python .ci/links.py

Reads what git tracks, and follows no address: a page elsewhere that is down is no fault of ours.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})")
# [text](target), ![alt](target "title"), and the target of [name]: target.
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+[\"'][^)]*)?\)|^ {0,3}\[[^]]+\]:\s+(\S+)")
HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)=[\"']([^\"']+)")
NAMED = re.compile(r"<a\b[^>]*?\b(?:id|name)=[\"']([^\"']+)")


def text_lines(page: str) -> Iterator[tuple[int, str]]:
    """The lines of a page with their numbers, without those of code blocks."""
    fence = ""
    for number, line in enumerate(page.splitlines(), 1):
        found = FENCE.match(line)
        if not fence and found:
            fence = found[1]
        elif fence and found and found[1].startswith(fence) and not line.strip().strip(fence[0]):
            fence = ""
        elif not fence:
            yield number, line


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it.

    >>> slug("The *unknown* class distribution, `a_b` & [c](d.md)")
    'the-unknown-class-distribution-a_b--c'
    """
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading)
    text = re.sub(r"(?<![\w`])(\*{1,3}|_{1,3})(\S.*?)\1(?!\w)", r"\2", text)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(page: str) -> set[str]:
    """What `#...` can name on a page; the second heading of the same text ends in -1."""
    seen: Counter[str] = Counter()
    named = set()
    for _, line in text_lines(page):
        named |= set(NAMED.findall(line))
        if heading := re.match(r" {0,3}#{1,6}\s+(.*?)\s*#*\s*$", line):
            name = slug(heading[1])
            named.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return named


def links(page: str) -> Iterator[tuple[int, str]]:
    """Line and target of every link."""
    for number, line in text_lines(page):
        bare = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "``", line)
        for target in (*(a or b for a, b in LINK.findall(bare)), *HTML.findall(bare)):
            yield number, target


def tracked() -> set[Path]:
    """Files that git tracks, or would with the next commit, and the folders they lie in."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = {ROOT / name for name in names.split("\0") if name}
    return {file for file in files if file.exists()} | {p for f in files for p in f.parents}


def broken(there: set[Path]) -> Iterator[str]:
    """A line for every link that leads nowhere."""
    pages = {p: p.read_text("utf-8") for p in sorted(there) if p.suffix == ".md" and p.is_file()}
    for path, page in pages.items():
        for line, target in links(page):
            if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|//", target):
                continue
            name, _, anchor = unquote(target).partition("#")
            goal = Path(path.parent, name).resolve() if name else path
            place = f"{path.relative_to(ROOT)}:{line}: {target}"
            if goal not in there:
                yield f"{place}: no such file in the repository"
            elif anchor and goal in pages and anchor not in anchors(pages[goal]):
                yield f"{place}: no such heading"


def main() -> int:
    """Print what is broken; 1 if anything is."""
    there = tracked()
    found = list(broken(there))
    print(*found, sep="\n", end="\n" if found else "")
    number = sum(p.suffix == ".md" for p in there)
    print(f"{number} pages, {len(found)} broken links")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
