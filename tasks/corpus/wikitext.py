"""Wikitext to plain text.

    plain("'''Tea''' ([[Camellia sinensis|the plant]]){{citation needed}} is …", "Hans")  ==  "Tea (the plant) is …"

What never gives text (comments, references, templates, tables, files, categories) is cut out by passes of our own, each of one walk over the page: the parser,
mwparserfromhell, takes time with the square of a page's length on unclosed `{|`, `{{{`, `<ref>`, `[http` (60-200 s at 100 kB). It then parses line by line.
Chinese variant markup `-{zh-hans:…;zh-hant:…}-` is resolved first, to one script: https://www.mediawiki.org/wiki/Writing_systems/Syntax
"""

import html
import re
from typing import Any

LINE = 5_000
"""Characters of one line given to the parser at once."""
SHIELD = {ord(sign): 0xF0000 + ord(sign) for sign in "[]{}|'=*#:;<>-&"}
"""Markup inside nowiki, as private characters that no pass takes for markup; UNSHIELD turns them back at the end."""
UNSHIELD = {private: sign for sign, private in SHIELD.items()}
HIDDEN_TAGS = (
    "ref|references|gallery|math|chem|ce|timeline|score|syntaxhighlight|source|templatedata|templatestyles|imagemap|graph|hiero|mapframe|maplink|includeonly"
    "|inputbox|categorytree|section|indicator|style|script|table"
)
OPENING = re.compile(rf"<({HIDDEN_TAGS})\b([^<>]*)>", re.IGNORECASE)
INLINE = {
    "lang": 2, "langx": 2, "transl": -1, "transliteration": -1, "nowrap": 1, "nobr": 1, "nobold": 1, "nobreak": 1, "small": 1, "big": 1, "em": 1, "strong": 1, "sc": 1,
    "mvar": 1, "val": 1, "abbr": 1, "ill": 1, "interlanguage link": 1, "le": 1, "tsl": -1, "link-en": 1, "link-ja": 1, "link-de": 1, "link-fr": 1, "nihongo": 1,
    "quote": 1, "blockquote": 1, "cquote": 1, "notetag": 0, "visible anchor": 1, "vanchor": 1, "ruby": 1, "kbd": 1, "code": 1, "var": 1, "as written": 1,
}  # fmt: skip
"""Templates that stand in running text for one of their own arguments (counted from 1, -1 is the last): dropping them would tear holes into sentences."""
SIGNS = {
    "nbsp": " ",
    "ndash": "–",
    "mdash": "—",
    "snd": " – ",
    "spaced ndash": " – ",
    "spnd": " – ",
    "'": "'",
    "'s": "'s",
    "·": " · ",
    "dot": " · ",
    "!": "",
    "=": "=",
}
ASIDE = re.compile(
    r"\s*(?:file|image|media|category|文件|檔案|档案|圖像|图像|图片|圖片|分类|分類|媒体|媒體|datei|bild|kategorie|fichier|catégorie|archivo|imagen|categoría|immagine"
    r"|categoria|ficheiro|imagem|файл|изображение|категория|ファイル|画像|カテゴリ|plik|kategoria|bestand|categorie|[a-z]{2,3}(?:-[a-z]{2,8}){0,2}|simple|commons|wikt)\s*:",
    re.IGNORECASE,
)
"""Links that place a file, file the page under a category, or lead to another language: never text (with a colon in front they are)."""
BACK_MATTER = frozenset(
    (
        "references", "external links", "see also", "further reading", "notes", "notes and references", "footnotes", "bibliography", "sources", "citations", "works cited",
        "参考文献", "參考文獻", "参考资料", "參考資料", "外部链接", "外部連結", "外部鏈接", "参见", "參見", "注释", "註釋", "注釋", "註解", "延伸阅读", "延伸閱讀", "脚注", "腳註", "备注", "備註",
        "相关条目", "相關條目", "参看", "參看", "来源", "來源", "einzelnachweise", "weblinks", "siehe auch", "literatur", "脚注", "関連項目", "外部リンク", "出典", "voir aussi", "références",
    )
)  # fmt: skip
"""Headings of sections that are lists of links and books."""
DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:template:|模板:)?(?:[\w -]{0,30} )?(?:disambig(?:uation)?(?: page| cleanup)?|dab|disam|hndis|geodis|numberdis|letter-numberdis|mil-unit-dis|set index article|sia"
    r"|消歧[义義](?:页|頁)?|地名消歧[义義]|人名消歧[义義]|begriffsklärung|aimai|曖昧さ回避|homonymie|desambiguación|disambigua|неоднозначность|多义|多義)\s*(?:\||\}\})|__DISAMBIG__",
    re.IGNORECASE,
)
REDIRECT = re.compile(
    r"\s*#\s*(?:redirect|重定向|weiterleitung|redirection|redirección|перенаправление|転送|リダイレクト)\s*:?\s*\[\[", re.IGNORECASE
)
VARIANTS = {"Hans": ("zh-hans", "zh-cn", "zh-sg", "zh-my", "zh"), "Hant": ("zh-hant", "zh-tw", "zh-hk", "zh-mo", "zh")}
RULE = re.compile(r"(?:^|;)\s*(?:[^;:=]{0,200}=>\s*)?(zh(?:-(?:hans|hant|cn|tw|hk|mo|sg|my))?)\s*:", re.IGNORECASE)


def is_redirect(text: str) -> bool:
    """Whether wikitext is a redirect by its own first line (dumps also say so in their XML)."""
    return REDIRECT.match(text[:500]) is not None


def is_disambiguation(text: str) -> bool:
    """Whether a page only tells meanings of a title apart, by its template."""
    return DISAMBIGUATION.search(text) is not None


def plain(text: str, script: str) -> str:
    """Readable text of a page, one paragraph, heading or list item a line, list items with "- ". `script` (Hans or Hant) is the side that variant markup shows."""
    text = _without_comments(text)
    text = variants(text, script) if "-{" in text else text
    text = _without_tags(text)
    text = _without_templates(text)
    text = _without_tables(text)
    text = _without_asides(text)
    return _sections([_tidy(piece) for line in text.splitlines() for piece in _line(line).split("\n")]).translate(UNSHIELD)


def variants(text: str, script: str) -> str:
    """Resolve `-{…}-`, innermost first, in one walk. An unclosed one loses its braces only."""
    stack: list[list[str]] = [[]]
    at = 0
    for mark in re.finditer(r"-\{(?!\{)|\}-", text):
        stack[-1].append(text[at : mark.start()])
        at = mark.end()
        if mark[0] == "-{":
            stack.append([])
        elif len(stack) > 1:
            inner = "".join(stack.pop())
            stack[-1].append(_variant(inner, script))
        else:
            stack[-1].append(mark[0])
    return "".join(piece for level in stack for piece in level) + text[at:]


def _variant(inner: str, script: str) -> str:
    """What one `-{inner}-` shows: flags A (add and show), R (raw), H and T and - (hidden: rules and the page's title), D (describe), N (name)."""
    head, bar, rest = inner.partition("|")
    if bar and re.fullmatch(r"\s*[AHTRDNS+;\s-]*\s*", head, re.IGNORECASE):
        flags = head.upper()
        if any(flag in flags for flag in "HT-") and "A" not in flags:
            return ""
        return rest if "R" in flags else _side(rest, script)
    if bar and re.fullmatch(r"\s*zh(-\w+)?(\s*;\s*zh(-\w+)?)*\s*", head, re.IGNORECASE):
        return rest if any(name.strip().lower() in VARIANTS[script] for name in head.split(";")) else ""
    return _side(inner, script)


def _side(rules: str, script: str) -> str:
    """The text of `zh-hans:…;zh-hant:…` for a script; text without rules is itself."""
    marks = list(RULE.finditer(rules))
    if not marks or rules[: marks[0].start()].strip():
        return rules
    ends = [mark.start() for mark in marks[1:]] + [len(rules)]
    sides = {mark[1].lower(): rules[mark.end() : end].strip().rstrip(";") for mark, end in reversed(list(zip(marks, ends, strict=True)))}
    return next((sides[name] for name in VARIANTS[script] if name in sides), next(iter(reversed(sides.values()))))


def _without_comments(text: str) -> str:
    kept, at = [], 0
    while (start := text.find("<!--", at)) >= 0:
        end = text.find("-->", start + 4)
        kept.append(text[at:start])
        at = len(text) if end < 0 else end + 3
    return "".join(kept) + text[at:]


def _without_tags(text: str) -> str:
    """Cut elements that hold no running text, with what they hold. Of one that is never closed only the tag goes. nowiki shields its content."""
    text = re.sub(r"<nowiki\s*/>|__[A-Z]{3,25}__", "", text)
    text = re.sub(
        r"<nowiki>([^<]*)</nowiki>",
        lambda found: found[1].translate(SHIELD),
        text,
        flags=re.IGNORECASE,
    )
    lower = text.lower()
    if len(lower) != len(text):  # İ grows: offsets would no longer agree
        lower = text
    kept, at, missing = [], 0, set[str]()
    for tag in OPENING.finditer(text):
        if tag.start() < at:
            continue
        kept.append(text[at : tag.start()])
        at = tag.end()
        name = tag[1].lower()
        if not tag[2].rstrip().endswith("/") and name not in missing:
            end = lower.find(f"</{name}", at)
            if end < 0:
                missing.add(name)
            else:
                close = text.find(">", end)
                at = close + 1 if close >= 0 else len(text)
    return "".join(kept) + text[at:]


def _without_templates(text: str) -> str:
    """Cut `{{…}}` and `{{{…}}}`, but for the few that stand for words. An unclosed one loses its braces only."""
    stack: list[list[str]] = [[]]
    at = 0
    for mark in re.finditer(r"\{\{|\}\}", text):
        stack[-1].append(text[at : mark.start()])
        at = mark.end()
        if mark[0] == "{{":
            stack.append([])
        elif len(stack) > 1:
            inner = "".join(stack.pop())
            stack[-1].append(_template(inner))
    return "".join(piece for level in stack for piece in level) + text[at:]


def _template(inner: str) -> str:
    """The words a template stands for, '' for all that we do not know."""
    if len(inner) > 2000:
        return ""
    name, *given = inner.split("|") if "[[" not in inner else re.split(r"\|(?![^\[]{0,500}\]\])", inner)
    name = name.strip().replace("_", " ").lower()
    arguments = [argument.strip() for argument in given if not re.match(r"\s*[\w -]{1,30}=", argument) or re.match(r"\s*\d\s*=", argument)]
    arguments = [re.sub(r"^\d\s*=\s*", "", argument) for argument in arguments]
    if name in SIGNS:
        return SIGNS[name]
    if name in ("convert", "cvt") and len(arguments) > 1:
        return f"{arguments[0]} {arguments[1]}"
    if name.startswith("lang-") and arguments:
        return arguments[0]
    place = INLINE.get(name)
    if place and len(arguments) >= abs(place):
        return arguments[place - 1] if place > 0 else arguments[place]
    return ""


def _without_tables(text: str) -> str:
    """Cut the lines from `{|` to `|}`, tables in tables too. Of one that is never closed the lines of its markup go."""
    if "{|" not in text:
        return text
    kept: list[str] = []
    held: list[str] = []
    depth = 0
    for line in text.split("\n"):
        mark = line.lstrip(" \t:*#")
        if mark.startswith("{|"):
            depth += 1
        if depth:
            held.append(line)
            if mark.startswith("|}"):
                depth -= 1
                if not depth:
                    kept.append(mark[2:])
                    held = []
        else:
            kept.append(line)
    return "\n".join(kept + [line for line in held if not line.lstrip(" \t:*#").startswith(("{|", "|", "!"))])


def _without_asides(text: str) -> str:
    """Cut links to files, categories and other languages, whose captions may hold links and line breaks."""
    stack: list[list[str]] = [[]]
    at = 0
    for mark in re.finditer(r"\[\[|\]\]", text):
        stack[-1].append(text[at : mark.start()])
        at = mark.end()
        if mark[0] == "[[":
            stack.append([])
        elif len(stack) > 1:
            inner = "".join(stack.pop())
            stack[-1].append("" if ASIDE.match(inner[:60]) else f"[[{inner}]]")
        else:
            stack[-1].append("]]")
    pieces = [piece for level in stack for piece in ([*level, "[["] if level is not stack[-1] else level)]
    return "".join(pieces) + text[at:]


def _line(line: str) -> str:
    """One line through the parser: links to their words, entities to characters. Tags lose their marks before it, which a stray `<` would cost dearly."""
    line = re.sub(r"</?[a-zA-Z][^<>]{0,300}>", "", re.sub(r"<[bh]r\b[^<>]{0,50}>", "\n", line, flags=re.IGNORECASE)).replace("<", "&lt;")
    if not re.search(r"\[|&|https?:", line):
        return line
    import mwparserfromhell

    pieces = [line[start : start + LINE] for start in range(0, len(line), LINE)]
    return "".join(_words(mwparserfromhell.parse(piece, skip_style_tags=True)) for piece in pieces)


def _words(code: Any) -> str:
    from mwparserfromhell import nodes

    words = []
    for node in code.nodes:
        if isinstance(node, nodes.Text):
            words.append(str(node))
        elif isinstance(node, nodes.Wikilink):
            words.append(_words(node.text) if node.text is not None else _words(node.title).strip().lstrip(":"))
        elif isinstance(node, nodes.ExternalLink):
            words.append(_words(node.title) if node.title is not None else "")
        elif isinstance(node, nodes.Tag):  # a list mark; those in HTML are gone
            words.append(str(node.wiki_markup or ""))
        elif isinstance(node, nodes.HTMLEntity):
            words.append(html.unescape(str(node)))
        elif isinstance(node, nodes.Heading):
            words.append("=" * node.level + _words(node.title) + "=" * node.level)
    return "".join(words)


def _tidy(line: str) -> str:
    """A line without the remains of markup: emphasis, stray brackets, parentheses that lost their content, list marks."""
    line = re.sub(r"'{2,}|\[\[|\]\]|\{\||\|\}", "", line)
    line = re.sub(r"[(（]\s*[,;，；、:：/\s]*[)）]", "", line)
    line = re.sub(r"([(（])\s*[,;，；、]\s*", r"\1", line)
    line = re.sub(r"[ \t\u00a0]+", " ", line)
    line = re.sub(r" ([,.;:!?)，。；：！？）、])(?=\s|$|[,.;)，。])", r"\1", line).strip()
    listed = re.match(r"[*#:;]+\s*", line)
    if listed:
        rest = line[listed.end() :]
        line = f"- {rest}" if rest and listed[0][0] in "*#" else rest
    return "" if re.fullmatch(r"[-–—|!\s]*", line) else line


def _sections(lines: list[str]) -> str:
    """Join lines; headings become plain lines with a blank one before, and go where nothing follows them or only links and books do."""
    kept: list[str] = []
    headings: list[tuple[int, str]] = []
    skipping = 0
    for line in lines:
        heading = re.fullmatch(r"(={1,6})\s*(.{1,300}?)\s*=+", line)
        if heading:
            level = len(heading[1])
            if skipping and level > skipping:
                continue
            skipping = level if heading[2].strip().lower() in BACK_MATTER else 0
            headings = [known for known in headings if known[0] < level]
            if not skipping:
                headings.append((level, heading[2].strip()))
        elif line and not skipping:
            kept += [part for _, words in headings for part in ("", words)]
            if headings or (kept and not line.startswith("- ")):
                kept.append("") if not headings else None
            headings = []
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
