"""Check the built site without a network: ``python -m docs.links [FOLDER]``, after ``make docs``.

Every link inside the site has to lead to a page and a place on it, every picture to a file, and every link to elsewhere
has to be one that a browser could follow. Whether somebody is there, ``make links`` asks besides, with Sphinx's
linkcheck, which needs the internet.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

BUILT = Path(__file__).parent / "_build" / "html"
SCHEMES = {"http", "https", "mailto"}


class Page(HTMLParser):
    """The links of a page, and the places on it that links can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, _tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag links to, and its own name."""
        given = {name: value for name, value in attrs if value is not None}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        self.links |= {given[name] for name in ("href", "src") if name in given}


def problems(folder: Path = BUILT) -> list[str]:
    """Links that lead nowhere, as lines for a person."""
    pages = {path.resolve(): Page(path) for path in sorted(folder.rglob("*.html"))}
    if not pages:
        return [f"there are no pages in {folder}: make docs first"]
    return [
        f"{path.relative_to(folder.resolve())}: {link!r} {why}"
        for path, page in pages.items()
        for link in sorted(page.links)
        if (why := _wrong(link, path, pages))
    ]


def _wrong(link: str, path: Path, pages: dict[Path, Page]) -> str | None:
    """Why a link on a page leads nowhere; None if it leads somewhere."""
    if link != link.strip() or any(character.isspace() for character in link):
        return "has a space in it"
    parts = urlsplit(link)
    if parts.scheme == "data":
        return None
    if parts.scheme or parts.netloc:
        known = parts.scheme in SCHEMES and (parts.scheme == "mailto" or "." in (parts.hostname or ""))
        return None if known else "is no address on the internet"
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if not target.exists():
        return "is not there"
    place = unquote(parts.fragment)
    if place and target in pages and place not in pages[target].places:
        return "has no such place"
    return None


def main() -> int:
    """Print what is wrong; exit status 1 where anything is."""
    found = problems(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILT)
    print("\n".join(found) or "every link inside the site leads somewhere, and those to elsewhere are well-formed")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
