"""Markdown to plain text, one line at a time, lightly: marks go, words stay.

plain = Markdown(); text = "".join(plain.line(line) for line in lines); plain.title
"""

import re


class Markdown:
    """Takes light markup off, line by line: front matter, heading marks, emphasis, links, images, code fences, comments."""

    INLINE = (
        (re.compile(r"<!--.*?-->"), ""),
        (re.compile(r"!\[[^\]\n]{0,500}\]\([^)\n]{0,2000}\)"), ""),
        (re.compile(r"\[([^\]\n]{1,500})\](?:\([^)\n]{0,2000}\)|\[[^\]\n]{0,200}\])"), r"\1"),
        (re.compile(r"(\*\*|__|~~)(?=\S)([^\n]{1,2000}?)(?<=\S)\1"), r"\2"),
        (re.compile(r"(?<![\w*])\*(?=\S)([^*\n]{1,2000})(?<=\S)\*(?![\w*])"), r"\1"),
        (re.compile(r"(?<!\w)_(?=\S)([^_\n]{1,2000})(?<=\S)_(?!\w)"), r"\1"),
        (re.compile(r"(`+)([^`\n]{1,2000})\1"), r"\2"),
    )

    def __init__(self) -> None:
        self.title = ""
        self._number = 0
        self._front = self._fence = False

    def line(self, line: str) -> str:
        """One line of markdown as plain text; '' where nothing of it is text."""
        self._number += 1
        mark = line.strip()
        if self._number == 1 and mark == "---":
            self._front = True
            return ""
        if self._front:
            self._front = mark not in ("---", "...")
            found = re.match(r"title:\s*[\"']?(.*?)[\"']?\s*$", line)
            self.title = found[1] if found else self.title
            return ""
        if mark.startswith(("```", "~~~")):
            self._fence = not self._fence
            return ""
        if self._fence:
            return line
        if re.fullmatch(r"([-*_] ?){3,}|=+|\|?[-:| ]*-{3,}[-:| ]*", mark):
            return ""
        heading = re.match(r" {0,3}#{1,6}\s+(.*?)\s*#*\s*$", line)
        line = heading[1] + "\n" if heading else re.sub(r"^\s{0,3}(?:>\s?)+", "", line)
        for pattern, plain in self.INLINE:
            line = pattern.sub(plain, line)
        if heading and not self.title:
            self.title = line.strip()
        return line
