"""HTML of a post as the plain text that a model is to read.

Structure that carries meaning stays, in the marks that people type: code in backticks, list items,
quotations, paragraphs. Links keep their words and lose their address.
"""

import re
from dataclasses import dataclass
from html.parser import HTMLParser

GAPS = {"br": 1, "tr": 1, "dt": 1, "dd": 1} | dict.fromkeys(
    ("p", "div", "ul", "ol", "dl", "table", "hr", "h1", "h2", "h3", "h4", "h5", "h6"), 2
)
"""Line feeds that stand before and after an element."""

LISTS = ("ul", "ol")

FRAMED = ("li", "blockquote", "pre", "script", "style")
"""Elements whose text is collected apart: each of its lines is changed, or all is dropped."""

MARKS = {"code": "`", "s": "~~", "strike": "~~", "del": "~~"}


def text_of(html: str) -> str:
    r"""Return HTML as text: entities resolved, blocks apart, code and lists marked.

    Elements that are not closed end with what holds them; end tags without a start are ignored.

        <p>Use <code>x &lt; 1</code></p><ul><li>a</li></ul>   ->   Use `x < 1`\n\n- a
    """
    reader = _Reader()
    reader.feed(html)
    reader.close()
    return reader.text()


@dataclass(slots=True)
class _List:
    depth: int
    """Frames that were open when it began; those above it are its own."""
    number: int | None
    """Of its last item; None where items have bullets."""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._frames: list[tuple[str, str]] = [("", "")]  # tag, text so far
        self._lists: list[_List] = []

    def text(self) -> str:
        while len(self._frames) > 1:
            self._close()
        return re.sub(r" +$", "", self._frames[0][1], flags=re.M).strip()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "li" and self._frames[-1][0] == "li" and not self._list_in_frame():
            self._close()  # HTML lets an item end with the next one
        if tag in GAPS:
            self._gap(1 if tag in LISTS and self._lists else GAPS[tag], every=tag == "br")
        if tag in LISTS:
            self._lists.append(_List(len(self._frames), 0 if tag == "ol" else None))
        elif tag in FRAMED:
            self._frames.append((tag, ""))
        elif tag == "img":
            self._add(f"[{dict(attrs).get('alt') or 'image'}]")
        elif tag in ("td", "th") and not self._at_line_start():
            self._add(" | ")
        elif tag == "sup":
            self._add("^")
        else:
            self._mark(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in FRAMED and tag in [name for name, _ in self._frames]:
            while self._frames[-1][0] != tag:
                self._close()
            self._close()
        elif tag in LISTS and self._lists:
            while len(self._frames) > self._lists[-1].depth:
                self._close()
            self._lists.pop()
            self._gap(1 if self._lists else 2)
        elif tag in GAPS and tag != "br":
            self._gap(GAPS[tag])
        else:
            self._mark(tag)

    def handle_data(self, data: str) -> None:
        if self._frames[-1][0] != "pre":
            data = re.sub(r"\s+", " ", data)
            if self._at_line_start() or self._frames[-1][1].endswith(" "):
                data = data.lstrip(" ")
        self._add(data)

    def _add(self, text: str) -> None:
        tag, before = self._frames[-1]
        self._frames[-1] = tag, before + text

    def _mark(self, tag: str) -> None:
        if self._frames[-1][0] != "pre":
            self._add(MARKS.get(tag, ""))

    def _at_line_start(self) -> bool:
        return self._frames[-1][1][-1:] in ("", "\n")

    def _gap(self, lines: int, *, every: bool = False) -> None:
        """End the line, and leave `lines` - 1 blank ones; with `every`, besides those there are."""
        tag, before = self._frames[-1]
        before = before.rstrip(" ")
        there = 0 if every else len(before) - len(before.rstrip("\n"))
        if before:
            self._frames[-1] = tag, before + "\n" * max(0, lines - there)

    def _list_in_frame(self) -> bool:
        """Whether a list is open that began inside the innermost element collected apart."""
        return bool(self._lists) and self._lists[-1].depth >= len(self._frames)

    def _close(self) -> None:
        """End the innermost element that is collected apart, and add it to what holds it."""
        while self._list_in_frame():
            self._lists.pop()
        tag, inside = self._frames.pop()
        if tag in ("script", "style"):
            return
        self._gap(1 if tag == "li" else 2)
        if tag == "pre":
            self._add("```\n" + inside.strip("\n") + "\n```")
        elif tag == "blockquote":
            self._add(_before_lines("> ", "> ", inside))
        else:
            marker = self._marker()
            self._add(_before_lines(marker, " " * len(marker), inside))
        self._gap(1 if tag == "li" else 2)

    def _marker(self) -> str:
        """Return what stands before an item, and count it."""
        if not self._lists or self._lists[-1].number is None:
            return "- "
        self._lists[-1].number += 1
        return f"{self._lists[-1].number}. "


def _before_lines(first: str, others: str, text: str) -> str:
    lines = [line.rstrip() for line in text.strip().split("\n")]
    return "\n".join((first + lines[0], *(others + line for line in lines[1:])))
