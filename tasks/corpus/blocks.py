"""The blocks of a page and what can be seen of each: serialised HTML -> runs of text, and a row of features for each.

    scan(html, MAX)     ->  text, blocks, nodes, page, marks   one pass over the bytes
    describe(…)         ->  features, float32 (blocks, len(FEATURES))

A block is the text between two boundaries of block-level elements (or line breaks). `html` is what lexbor writes of its own tree: every element has an end tag
unless void, every attribute value stands in double quotes, text knows four entities. So the tree is the HTML standard's and one pass over bytes reads it.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from numba import types

from tasks.corpus.compiled import njit

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

HTML = types.Array(types.uint8, 1, "C", readonly=True)
TABLE = types.Array(types.int64, 2, "C", readonly=True)
INT = types.int64

FNV, PRIME, MASK = 2166136261, 16777619, 0xFFFFFFFF
VOID = "area base br col embed hr img input link meta param source track wbr basefont bgsound frame keygen"
RAW = "script style xmp iframe noembed noframes plaintext"
SKIPPED = "head template svg select textarea canvas object audio video datalist map"
INLINE = (
    "a span b strong i em u s small big sub sup font code kbd samp var tt mark abbr acronym cite q time label ins del bdi bdo dfn data ruby rb rt rp nobr strike"
    " picture"
)
PLAIN = (
    "noscript html body title div p li ul ol table tbody thead tfoot tr td th h1 h2 h3 h4 h5 h6 article main section nav header footer aside form button blockquote pre"
    " figure figcaption dl dt dd details summary center fieldset address dialog"
)
TAGS = tuple(dict.fromkeys(f"{VOID} {RAW} {SKIPPED} {INLINE} {PLAIN}".split()))
"""Known element names; an element's number is its place here plus one, 0 for any other."""
SEMANTICS = {
    "nav": "nav navbar navigation menu submenu topnav sidenav navlinks megamenu navi daohang mainmenu navmenu",
    "header": "header masthead banner topbar top hd head toolbar",
    "footer": "footer foot bottom ft colophon foota footerlinks",
    "sidebar": "sidebar aside side rail secondary rightcol leftcol right left widget widgets complementary col2 sidebox",
    "ad": "ad ads advert advertisement adsense sponsor sponsored promo promotion dfp adv advertising guanggao gg taboola outbrain",
    "share": "share sharing social facebook twitter follow addthis sns sharethis bshare weibo whatsapp pinterest linkedin",
    "related": "related recommend recommended recommendations recommendation more also similar popular trending latest hot upsell tuijian xiangguan rel next prev",
    "comment": "comment comments commentlist disqus reply replies respond pinglun commenter discussion",
    "content": "content contents body text richtext rte prose markdown wysiwyg copy maincontent bodytext neirong zhengwen rich",
    "main": "main primary center middle",
    "article": "article post entry story articlebody postbody news single blog entrycontent artibody page",
    "meta": "meta byline author date time timestamp info source postmeta published updated views",
    "tags": "tag tags category categories label labels topic topics keyword keywords",
    "modal": "hidden hide modal popup overlay dialog offcanvas drawer collapse lightbox tooltip dropdown mobile",
    "cookie": "cookie cookies consent gdpr onetrust cookiebot ccpa cmp privacy",
    "signup": "newsletter subscribe signup login register subscription signin account optin cta paywall user",
    "card": "card cards item items list grid tile tiles teaser result results row listing archive loop",
    "product": "product products price sku specs specifications spec cart shop buy variant option options collection catalog quantity stock",
    "detail": "description details detail desc summary overview features feature about excerpt intro abstract lead lede",
    "review": "review reviews rating ratings testimonial testimonials stars",
    "forum": "thread message messages msg forum question answer answers signature quote username userinfo poster avatar topicpost cooked posttext bbcode",
    "crumbs": "breadcrumb breadcrumbs crumb crumbs pagination pager pages paginate paging",
    "search": "search filter filters sort facets facet refine filtering",
    "skip": "sr only visually screen reader skip accessibility",
    "media": "caption figcaption credit gallery slider carousel slideshow image photo video player img media swiper slick",
    "docs": "toc tableofcontents docs code highlight example doc document documentation reference wiki",
    "section": "hero section faq faqs accordion pricing tab tabs panel block benefits",
    "bio": "bio authorbox profile contributor authors",
    "title": "title headline heading subtitle subheading h1 name",
    "legal": "copyright disclaimer legal terms policy license",
    "recipe": "recipe ingredients instructions directions steps step",
}
"""What words in class, id, role and itemprop mean."""
KINDS = {
    "article": "article newsarticle blogposting reportagenewsarticle techarticle posting blog news single",
    "product": "product offer productgroup individualproduct shopify woocommerce magento",
    "forum": "discussionforumposting qapage question discourse vbulletin phpbb xenforo flarum mybb answer forum topic thread viewtopic showthread",
    "list": "itemlist collectionpage searchresultspage archive category collection tag listing",
    "faq": "faqpage service organization localbusiness softwareapplication",
    "docs": "sphinx docusaurus mkdocs mediawiki hugo gitbook apireference docs documentation",
    "home": "home website frontpage webpage",
    "recipe": "recipe howto",
}
"""What og:type, generator, the classes of html and body and the types in JSON-LD say a page is."""
STOPWORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you were her all she there would their"
    " we him been has when who will more no if out so what up about can into than them then its your my our do how also just over some these other any may"
    " de la el que y en los las un una por con para es del se no al lo le les des et est dans pour que qui sur pas au par plus ce il une sont avec"
    " der die und das den ist von mit zu sich auf dem ein eine nicht im auch es an werden aus er hat dass sie nach wird bei di che e non per sono"
    " da do na os em um uma nie z w i na jest do het een van dat op te zijn voor"
)
ADDRESSES = {
    "product": "product products prod item items p dp sku listing itm buy pd",
    "list": "category categories collection collections c cat catalog tag tags archive archives search browse list jobs department shop topics all",
    "article": "blog blogs news article articles post posts story stories magazine insights resources press content features review reviews best",
    "forum": "forum forums thread threads topic viewtopic showthread question questions discussion discussions community t comments r",
    "docs": "docs doc documentation reference manual api guide guides wiki learn tutorial tutorials developer developers support help",
    "service": "services service solutions platform pricing about features company programs course courses",
}
"""What words of a page's canonical address say it is."""
SAYINGS = {
    "related": "related similar recommended recommends recommendations popular trending latest also more next previous recent recently top featured bestsellers viewed bought",
    "comment": "comments comment replies reply responses respond discussion leave thread posts threads joined members likes",
    "review": "reviews review ratings rating rated customer customers testimonials stars verified helpful",
    "share": "share follow tweet facebook twitter instagram pinterest linkedin youtube tiktok whatsapp email print copy link connect",
    "account": "subscribe newsletter sign login log register account password email inbox updates join signup unsubscribe",
    "shop": "cart bag checkout wishlist quantity size sizes color colors add buy stock sold shipping delivery returns sale price off save",
    "cookie": "cookies cookie consent accept preferences privacy settings gdpr advertising",
    "legal": "copyright rights reserved terms disclaimer policy trademark inc llc ltd",
    "detail": "specifications specs details features description overview materials dimensions care about benefits ingredients highlights",
    "nav": "home menu search skip close browse categories category toggle navigation filter filters sort view show see all back load contents jump",
    "byline": "by author posted published updated written minutes read ago views edited staff",
    "answer": "faq faqs questions answers question answer asked",
    "contact": "contact call phone address hours support help faqs careers quote demo free started today consultation",
}
"""What words of the visible text mean, mostly in headings and buttons (English)."""
STOPMARKS = "的了在是我不人有他这這中大来來上个個们們到说說为為和你地出就也得自之着著而与與及对對于於但并並被将將没沒以所其或很让讓因都要会會可吗呢吧啊"

ATTRIBUTES = "class id role itemprop hidden aria-hidden style href property name content type itemtype rel datetime"
"""Those that are read, in the order of CLASS … DATETIME."""
CLASS_, ID, ROLE, ITEMPROP, HIDDEN_, ARIA_HIDDEN, STYLE, HREF, PROPERTY, NAME_, CONTENT, TYPE, ITEMTYPE, REL, DATETIME = range(1, 16)

SAYS = {
    "og_title": "og:title",
    "og_url": "og:url",
    "described": "description og:description twitter:description",
    "dated": (
        "publishdate publish_date publish-date publisheddate published_date published_at pubdate displaydate parsely-pub-date sailthru.date"
        " cxenseparse:publishtime og:publish_date citation_publication_date citation_online_date citation_date date dc.date dc.date.issued dcterms.date"
        " dcterms.created article:published datecreated"
    ),
    "stated": "datepublished",
    "published": "article:published_time og:article:published_time og:published_time",
}
"""Names of meta elements (property, name, itemprop) by what their content is."""
MARKS_OF = ("title", "heading", "canonical", "base", "json_ld", "time", *SAYS)
"""What a page says of itself (about.py); a kind of mark is its place here plus one."""
MOST_MARKS, MOST_TIMES = 64, 8


def fnv(word: bytes | str) -> int:
    """32-bit FNV-1a."""
    value = FNV
    for byte in word.encode() if isinstance(word, str) else word:
        value = (value ^ byte) * PRIME & MASK
    return value


def _lookup(words: Iterable[tuple[str, int]], size: int) -> Ints:
    """An open-addressing table (size, 2) of (hash, value); an empty row has value 0. `size` is a power of two."""
    table = np.zeros((size, 2), np.int64)
    for word, value in words:
        key = fnv(word)
        place = key & size - 1
        while table[place, 1] and table[place, 0] != key:
            place = place + 1 & size - 1
        table[place] = key, table[place, 1] | value
    return table


_NUMBER = {tag: number for number, tag in enumerate(TAGS, 1)}
_CLASS = np.zeros(len(TAGS) + 1, np.int64)
"""Of each element number: 1 void, 2 raw text, 4 skipped with all it holds, 8 inline."""
for _names, _bit in ((VOID, 1), (RAW, 2 | 4), (SKIPPED, 4), (INLINE, 8)):
    for _name in _names.split():
        _CLASS[_NUMBER[_name]] |= _bit
_CLASS[_NUMBER["img"]] |= 8
_CLASS[_NUMBER["wbr"]] |= 8
_CLASS[_NUMBER["input"]] |= 8
_TAG = _lookup(_NUMBER.items(), 512)
_MEANING = _lookup(((word, 1 << bit) for bit, words in enumerate(SEMANTICS.values()) for word in words.split()), 1024)
_KIND = _lookup(((word, 1 << bit) for bit, words in enumerate(KINDS.values()) for word in words.split()), 256)
_ADDRESS = _lookup(((word, 1 << bit) for bit, words in enumerate(ADDRESSES.values()) for word in words.split()), 256)
_STOP = _lookup(
    (
        *((word, 1) for word in STOPWORDS.split() + list(STOPMARKS)),
        *((word, 2 << bit) for bit, words in enumerate(SAYINGS.values()) for word in words.split()),
    ),
    2048,
)
"""Bit 0: a stop word; the bits above it: SAYINGS."""
_ATTRIBUTE = _lookup(((name, number) for number, name in enumerate(ATTRIBUTES.split(), 1)), 64)
_KIND_OF_MARK = {name: number for number, name in enumerate(MARKS_OF, 1)}
_SAYS = _lookup(((word, _KIND_OF_MARK[kind]) for kind, words in SAYS.items() for word in dict.fromkeys(words.split())), 128)
M_TITLE, M_HEADING, M_CANONICAL, M_BASE, M_JSON_LD, M_TIME = range(1, 7)
M_STATED, M_DESCRIBED, M_OG_URL = (_KIND_OF_MARK[name] for name in ("stated", "described", "og_url"))
_NAMED = "a article b base body br h1 head html li link meta pre script strong td th time title tr"
A, ARTICLE, B, BASE, BODY, BR, H1, HEAD, ROOT, LI, LINK, META, PRE, SCRIPT, STRONG, TD, TH, TIME, TITLE, TR = (
    _NUMBER[tag] for tag in _NAMED.split()
)
SURE = 0.7
"""How much more than half of the expected F1 a block's chance must be, for each point of that F1 above .8."""
DESCRIPTION, ARTICLE_BODY, REVIEW_BODY, TEXT = (fnv(name) for name in ("description", "articlebody", "reviewbody", "text"))
OG_TYPE, GENERATOR, CANONICAL, LD_JSON = fnv("og:type"), fnv("generator"), fnv("canonical"), fnv("application/ld+json")
DISPLAY_NONE, VISIBILITY_HIDDEN = fnv("display:none"), fnv("visibility:hidden")
HIDDEN = 1 << 40
"""Bit of a node's meaning: its own attributes hide it."""

# Columns of `blocks`.
(
    START,
    END,
    NODE,
    AT,
    CHARS,
    WORDS,
    CJK,
    DIGITS,
    CAPITALS,
    SENTENCES_,
    COMMAS,
    STOPS,
    LINKED,
    LINKS,
    BOLD,
    TITLED,
    BROKEN,
    MARKS,
    LAST,
    LONGEST,
    KIN,
    PRICES,
    SAID,
    WORD_AT,
    WORD_END,
    DESCRIBED,
    RECITED,
    TEXT_HASH,
) = range(28)
COLUMNS = 28
# Columns of `nodes`.
PARENT, NAME, MEANING, SIGN, LEVEL, N_WORDS, N_LINKED, N_BLOCKS, N_PROSE, N_CHILDREN, PATH, TWIN = range(12)
NODE_COLUMNS = 12


@njit(INT(TABLE, INT), cache=True)
def find(table: Ints, key: int) -> int:
    """Value of a hash in a table of `_lookup`, 0 for none."""
    size = table.shape[0] - 1
    place = key & size
    while table[place, 1] != 0:
        if table[place, 0] == key:
            return table[place, 1]
        place = (place + 1) & size
    return 0


@njit(INT(HTML, INT, INT, TABLE), cache=True)
def meanings(html: Bytes, start: int, end: int, table: Ints) -> int:
    """Bits of all words in html[start:end]; words end at what is no letter, at a digit, and where a capital follows a small letter (navBar: nav, bar)."""
    found = 0
    value = FNV
    whole = FNV
    length = 0
    parts = 0
    small = False
    for at in range(start, end + 1):
        byte = html[at] if at < end else 32
        letter = 97 <= (byte | 32) <= 122
        capital = letter and byte < 97
        if length > 0 and (not letter or (capital and small)):
            found |= find(table, value)
            value = FNV
            length = 0
            parts += 1
        if not letter and byte != 45 and byte != 95:
            if parts > 1:
                found |= find(table, whole)
            whole = FNV
            parts = 0
        if letter:
            value = ((value ^ (byte | 32)) * PRIME) & MASK
            whole = ((whole ^ (byte | 32)) * PRIME) & MASK
            length += 1
            small = not capital
        else:
            small = False
    return found


@njit(INT(HTML, INT, INT), cache=True)
def sign(html: Bytes, start: int, end: int) -> int:
    """Hash of html[start:end] without its digits."""
    value = FNV
    for at in range(start, end):
        byte = html[at]
        if not 48 <= byte <= 57:
            value = ((value ^ byte) * PRIME) & MASK
    return value


@njit(INT(HTML, INT, INT), cache=True)
def hash_of(html: Bytes, start: int, end: int) -> int:
    """FNV-1a of html[start:end] in lower case, without blanks."""
    value = FNV
    for at in range(start, end):
        byte = html[at]
        if byte > 32:
            value = ((value ^ (byte | 32 if 65 <= byte <= 90 else byte)) * PRIME) & MASK
    return value


@njit(types.boolean(HTML, INT, INT), cache=True)
def hides(html: Bytes, start: int, end: int) -> bool:
    """Does a style in html[start:end] say display:none or visibility:hidden?"""
    begun = start
    for at in range(start, end + 1):
        if at == end or html[at] == 59 or html[at] == 33:  # ; or !important
            if hash_of(html, begun, at) in (DISPLAY_NONE, VISIBILITY_HIDDEN):
                return True
            begun = at + 1
    return False


@njit(types.void(types.int64[::1], INT, INT, types.int64[::1], INT, types.int64[::1]), cache=True)
def end_word(row: Ints, value: int, length: int, title: Ints, titled: int, words: Ints) -> None:
    """Count a word that ended: what does it mean, is it in the title? `words`: their number, then the hash of each."""
    meaning = find(_STOP, value)
    row[STOPS] += meaning & 1
    row[SAID] |= meaning >> 1
    row[TEXT_HASH] = (row[TEXT_HASH] * PRIME ^ value) & MASK
    row[LONGEST] = max(row[LONGEST], length)
    words[0] += 1
    words[words[0]] = value
    for n in range(titled):
        if title[n] == value:
            row[TITLED] += 1
            break


@njit(INT(HTML, INT, INT, types.int64[:, ::1], INT), cache=True)
def remember(html: Bytes, start: int, end: int, pairs: Ints, bit: int) -> int:
    """Put the pairs of neighbouring words of html[start:end] into a table. -> words seen"""
    size = pairs.shape[0] - 1
    value = FNV
    last = 0
    seen = 0
    inword = False
    for at in range(start, end + 1):
        byte = html[at] if at < end else 32
        lower = byte | 32 if 65 <= byte <= 90 else byte
        if lower >= 0xC0 or 97 <= lower <= 122 or 48 <= lower <= 57 or (inword and lower >= 128):
            value = ((value ^ lower) * PRIME) & MASK
            inword = True
        elif inword:
            if seen > 0 and seen < size // 2:
                key = (last * PRIME ^ value) & MASK
                place = key & size
                while pairs[place, 1] != 0 and pairs[place, 0] != key:
                    place = (place + 1) & size
                pairs[place, 0] = key
                pairs[place, 1] |= bit
            last = value
            seen += 1
            value = FNV
            inword = False
    return seen


@njit(types.void(HTML, types.int64[:, ::1], INT, types.int64[::1], types.int64[:, ::1], INT, types.int64[::1]), cache=True)
def recite(html: Bytes, marks: Ints, marked: int, words: Ints, blocks: Ints, count: int, page: Ints) -> None:
    """Count in each block the pairs of words that the page's description has, and those that the texts in its JSON-LD have; words of the latter to page[4].

    What the page's own address says goes to page[5:8]: bits of ADDRESSES, levels of its path, words of the last one.
    """
    pairs = np.zeros((4096, 2), np.int64)
    told = 0
    for m in range(marked):
        start, end = marks[m, 1], marks[m, 2]
        if (marks[m, 0] == M_CANONICAL or marks[m, 0] == M_OG_URL) and page[6] == 0:
            page[6] = 1
            slashes = 0
            path = start
            for at in range(start, end):
                if html[at] == 63 or html[at] == 35:  # ? and #
                    end = at
                    break
                if html[at] == 47:
                    slashes += 1
                    if slashes == 3:
                        path = at
                    if slashes >= 3 and at + 1 < end and html[at + 1] > 47:
                        page[6] += 1
                        page[7] = 1
                elif html[at] == 45 or html[at] == 95:
                    page[7] += 1
            if slashes >= 3:
                page[5] = meanings(html, path, end, _ADDRESS)
        elif marks[m, 0] == M_DESCRIBED:
            told += remember(html, start, min(end, start + 2000), pairs, 1)
        elif marks[m, 0] == M_JSON_LD:
            at = start
            while at < end:
                if html[at] != 34:
                    at += 1
                    continue
                close = at + 1
                while close < end and html[close] != 34:
                    close += 2 if html[close] == 92 else 1
                key = hash_of(html, at + 1, min(close, end))
                at = close + 1
                if key in (DESCRIPTION, ARTICLE_BODY, REVIEW_BODY, TEXT):
                    while at < end and (html[at] == 32 or html[at] == 58 or html[at] == 10):
                        at += 1
                    if at < end and html[at] == 34:
                        close = at + 1
                        while close < end and html[close] != 34:
                            close += 2 if html[close] == 92 else 1
                        if page[4] < 1500:
                            page[4] += remember(html, at + 1, min(close, end), pairs, 2)
                        at = close + 1
    if told + page[4] == 0:
        return
    for b in range(count):
        for n in range(blocks[b, WORD_AT] + 1, blocks[b, WORD_END]):
            found = find(pairs, (words[n] * PRIME ^ words[n + 1]) & MASK)
            blocks[b, DESCRIBED] += found & 1
            blocks[b, RECITED] += found >> 1


@njit(
    types.Tuple((types.uint8[::1], types.int64[:, ::1], types.int64[:, ::1], types.int64[::1], types.int64[:, ::1]))(HTML, INT, INT),
    cache=True,
)
def scan(html: Bytes, most_nodes: int, most_depth: int) -> tuple[Bytes, Ints, Ints, Ints, Ints]:
    """Read a serialised page.

    -> text (bytes, UTF-8), blocks (n, COLUMNS), nodes (m, NODE_COLUMNS), page: [elements, depth, kinds, title words, and what `recite` adds], marks (k, 3): kind, start and end in html.
    Reading stops where elements or depth pass the limit.
    """
    size = html.shape[0]
    brackets = 0
    for at in range(size):
        if html[at] == 60:
            brackets += 1
    text = np.empty(size + 8, np.uint8)
    blocks = np.zeros((2 * brackets + 2, COLUMNS), np.int64)
    nodes = np.zeros((brackets + 2, NODE_COLUMNS), np.int64)
    stack = np.zeros(most_depth + 8, np.int64)
    title = np.zeros(64, np.int64)
    titled = 0
    page = np.zeros(8, np.int64)
    words = np.empty(size // 2 + 8, np.int64)
    words[0] = 0
    before = 0  # words in the blocks that have ended
    marks = np.zeros((MOST_MARKS, 3), np.int64)
    marked = times = 0
    open_depth = 0  # of the element whose text the last open mark is
    open_mark = 0
    headed = False
    depth = 0  # of open elements; stack[depth] is the innermost, node 0 stands above html
    count = 0  # blocks ended
    elements = 0
    nodes_made = 1
    length = 0  # of text
    begun = 0  # where the block's text begins
    skipped = 0  # depth at which a skipped element was opened
    links = 0
    bold = 0
    pre = 0
    intitle = False
    space = False
    holder = 0  # innermost block-level element
    value = FNV  # of the word being read
    inword = 0
    row = blocks[0]
    at = 0
    boundary = False
    while at < size:
        byte = html[at]
        if byte == 60 and at + 1 < size:
            following = html[at + 1]
            if following == 33 or following == 63:  # comment, doctype, processing instruction
                if at + 3 < size and html[at + 2] == 45 and html[at + 3] == 45:
                    at += 4
                    while at + 2 < size and not (html[at] == 45 and html[at + 1] == 45 and html[at + 2] == 62):
                        at += 1
                    at += 3
                else:
                    while at < size and html[at] != 62:
                        at += 1
                    at += 1
                continue
            closing = following == 47
            bracket = at
            at += 2 if closing else 1
            value_of = FNV
            while at < size and html[at] != 62 and html[at] != 32 and html[at] != 10 and html[at] != 9 and html[at] != 47:
                value_of = ((value_of ^ html[at]) * PRIME) & MASK
                at += 1
            tag = find(_TAG, value_of)
            kind = _CLASS[tag]
            ends_word = not (kind & 8) or tag == A
            if closing:
                while at < size and html[at] != 62:
                    at += 1
                at += 1
                if depth > 0:
                    if tag == A and links > 0:
                        links -= 1
                    if tag in (B, STRONG) and bold > 0:
                        bold -= 1
                    if tag == PRE and pre > 0:
                        pre -= 1
                    if tag == TITLE and intitle:
                        if inword > 0 and titled < 64:
                            title[titled] = value
                            titled += 1
                        inword = 0
                        intitle = False
                    if open_depth == depth:
                        marks[open_mark, 2] = bracket
                        open_depth = 0
                    if skipped == depth:
                        skipped = 0
                    depth -= 1
                boundary = not (kind & 8)
                opened = False
            else:
                elements += 1
                meaning = 0
                signature = value_of
                hidden = False
                href = False
                says_kind = False
                content_at = content_end = href_at = href_end = time_at = time_end = 0
                says = 0
                canonical = json_ld = False
                while at < size and html[at] != 62:
                    if html[at] == 32 or html[at] == 10 or html[at] == 9 or html[at] == 47:
                        at += 1
                        continue
                    value_of = FNV
                    while at < size and html[at] != 61 and html[at] != 62 and html[at] != 32:
                        value_of = ((value_of ^ html[at]) * PRIME) & MASK
                        at += 1
                    start = end = at
                    if at + 1 < size and html[at] == 61 and html[at + 1] == 34:
                        start = at + 2
                        end = start
                        while end < size and html[end] != 34:
                            end += 1
                        at = end + 1
                    elif at < size and html[at] == 61:
                        at += 1
                    attribute = find(_ATTRIBUTE, value_of)
                    if attribute == 0:
                        continue
                    if attribute <= ITEMPROP:
                        meaning |= meanings(html, start, end, _MEANING)
                        if attribute == ITEMPROP:
                            says = max(says, find(_SAYS, hash_of(html, start, end)))
                        elif attribute == CLASS_:
                            signature = (signature * PRIME ^ sign(html, start, end)) & MASK
                            if tag in (BODY, ROOT):
                                page[2] |= meanings(html, start, end, _KIND)
                    elif attribute == HIDDEN_:
                        hidden = True
                    elif attribute == ARIA_HIDDEN:
                        hidden |= end > start and html[start] == 116
                    elif attribute == STYLE:
                        hidden |= hides(html, start, end)
                    elif attribute == HREF:
                        href = True
                        href_at, href_end = start, end
                    elif attribute in (PROPERTY, NAME_):
                        name_of = hash_of(html, start, end)
                        says_kind |= name_of in (OG_TYPE, GENERATOR)
                        says = max(says, find(_SAYS, name_of))
                    elif attribute == CONTENT:
                        content_at, content_end = start, end
                    elif attribute == ITEMTYPE:
                        page[2] |= meanings(html, start, end, _KIND)
                    elif attribute == REL:
                        canonical = hash_of(html, start, end) == CANONICAL
                    elif attribute == DATETIME:
                        time_at, time_end = start, end
                    elif attribute == TYPE:
                        json_ld = hash_of(html, start, end) == LD_JSON
                at += 1
                if says_kind:
                    page[2] |= meanings(html, content_at, content_end, _KIND)
                # What the page says of itself: from attributes, or (a mark left open) the text up to the element's end.
                kind_of = says if tag == META or says == M_STATED else 0
                if tag == LINK and canonical:
                    kind_of, content_at, content_end = M_CANONICAL, href_at, href_end
                elif tag == BASE:
                    kind_of, content_at, content_end = M_BASE, href_at, href_end
                elif tag == TIME and times < MOST_TIMES:
                    times += 1
                    kind_of, content_at, content_end = max(kind_of, M_TIME), time_at, time_end
                elif tag == SCRIPT and json_ld:
                    kind_of = M_JSON_LD
                elif tag == TITLE or (tag == H1 and not headed):
                    kind_of = M_TITLE if tag == TITLE else M_HEADING
                    headed |= tag == H1
                if (
                    kind_of > 0
                    and skipped == 0
                    and marked < MOST_MARKS
                    and (content_end > content_at or (kind & 1 == 0 and open_depth == 0))
                ):
                    if content_end == content_at and tag != SCRIPT:
                        open_depth, open_mark = depth + 1, marked
                        content_at, content_end = at, 0
                    elif tag == SCRIPT:
                        content_at = at
                    marks[marked] = kind_of, content_at, content_end
                    marked += 1
                if hidden:
                    meaning |= HIDDEN
                node = nodes_made
                nodes[node, PARENT] = stack[depth]
                nodes[node, NAME] = tag
                nodes[node, MEANING] = meaning if tag != BODY and tag != ROOT else meaning & HIDDEN
                nodes[node, SIGN] = signature
                nodes[node, LEVEL] = depth + 1
                nodes_made += 1
                boundary = not (kind & 8)
                opened = True
                if kind & 2:
                    # Raw text: to its own end tag. Types in JSON-LD are read on the way.
                    name_start = 0
                    while at < size:
                        if html[at] == 60 and at + 2 < size and html[at + 1] == 47:
                            value_of = FNV
                            name_start = at + 2
                            while name_start < size and html[name_start] != 62:
                                value_of = ((value_of ^ (html[name_start])) * PRIME) & MASK
                                name_start += 1
                            if find(_TAG, value_of) == tag:
                                break
                        elif (
                            tag == SCRIPT
                            and html[at] == 64
                            and at + 9 < size
                            and html[at + 1] == 116
                            and html[at + 2] == 121
                            and html[at + 3] == 112
                            and html[at + 4] == 101
                        ):
                            end = at + 6
                            while end < size and end < at + 60 and html[end] != 44 and html[end] != 125 and html[end] != 10:
                                end += 1
                            page[2] |= meanings(html, at + 6, end, _KIND)
                        at += 1
                    if kind_of == M_JSON_LD and marked > 0 and marks[marked - 1, 2] == 0:
                        marks[marked - 1, 2] = min(at, size)
                    at = name_start + 1
                    boundary = False
                    continue
        else:
            boundary = False
            opened = False
            closing = False
            tag = -1
            kind = 0
            ends_word = False

        if tag >= 0:
            if inword > 0 and ends_word and not intitle:
                end_word(row, value, inword, title, titled, words)
                inword = 0
            if boundary or tag == BR:
                # The block before this boundary ends.
                if length > begun and not intitle:
                    row[START] = begun
                    row[END] = length
                    row[NODE] = holder
                    row[WORD_AT], row[WORD_END] = before, words[0]
                    before = words[0]
                    count += 1
                    row = blocks[count]
                    begun = length
                space = False
                if tag == BR:
                    row[BROKEN] = 1
            elif tag == A:
                space = True
            if opened:
                if kind & 1 == 0:
                    depth += 1
                    page[1] = max(page[1], depth)
                    if elements > most_nodes or depth > most_depth:
                        break
                    stack[depth] = nodes_made - 1
                    if kind & 4 and skipped == 0 and tag != HEAD:
                        skipped = depth
                    if tag == A and href:
                        links += 1
                        if skipped == 0:
                            row[LINKS] += 1
                    elif tag == A:
                        links += 1
                    if tag in (B, STRONG):
                        bold += 1
                    if tag == PRE:
                        pre += 1
                    if tag == TITLE and skipped == 0:
                        intitle = True
                elif elements > most_nodes:
                    break
            if boundary:
                place = depth
                while place > 0 and _CLASS[nodes[stack[place], NAME]] & 8:
                    place -= 1
                holder = stack[place]
            continue

        if skipped > 0:
            at += 1
            while at < size and html[at] != 60:
                at += 1
            continue
        # One character of text: its width in bytes here, and what it is.
        width = 1
        point = int(byte)
        if byte == 38:
            if at + 3 < size and html[at + 1] == 108 and html[at + 2] == 116 and html[at + 3] == 59:
                width, point = 4, 60
            elif at + 3 < size and html[at + 1] == 103 and html[at + 2] == 116 and html[at + 3] == 59:
                width, point = 4, 62
            elif at + 4 < size and html[at + 1] == 97 and html[at + 2] == 109 and html[at + 3] == 112 and html[at + 4] == 59:
                width, point = 5, 38
            elif (
                at + 5 < size
                and html[at + 1] == 110
                and html[at + 2] == 98
                and html[at + 3] == 115
                and html[at + 4] == 112
                and html[at + 5] == 59
            ):
                width, point = 6, 32
        elif byte >= 240 and at + 3 < size:
            width = 4
            point = (byte & 7) << 18 | (html[at + 1] & 63) << 12 | (html[at + 2] & 63) << 6 | (html[at + 3] & 63)
        elif byte >= 224 and at + 2 < size:
            width = 3
            point = (byte & 15) << 12 | (html[at + 1] & 63) << 6 | (html[at + 2] & 63)
        elif byte >= 192 and at + 1 < size:
            width = 2
            point = (byte & 31) << 6 | (html[at + 1] & 63)
        blank = (
            point <= 32
            or point == 0xA0
            or point == 0x3000
            or 0x2000 <= point <= 0x200A
            or point == 0x202F
            or point == 0x2028
            or point == 0x2029
            or point == 0x205F
            or point == 0x1680
        )
        letter = (
            97 <= (point | 32) <= 122
            if point < 128
            else point >= 0xC0 and point != 0xD7 and point != 0xF7 and not 0x2000 <= point <= 0x2BFF
        )
        cjk = 0x3040 <= point <= 0x30FF or 0x3400 <= point <= 0x9FFF or 0xF900 <= point <= 0xFAFF or 0x20000 <= point <= 0x3FFFF
        if cjk or 0x3000 <= point <= 0x303F or 0xFF00 <= point <= 0xFFEF:
            letter = False
        digit = 48 <= point <= 57
        # A word ends before what is no letter or digit.
        if inword > 0 and not letter and not digit:
            if intitle:
                if titled < 64:
                    title[titled] = value
                    titled += 1
            else:
                end_word(row, value, inword, title, titled, words)
            inword = 0
        if (
            0xFDD0 <= point <= 0xFDEF
            or point == 0xFFFE
            or point == 0xFFFF
            or point == 0x200B
            or point == 0xFEFF
            or point == 0xAD
            or point == 0x200E
            or point == 0x200F
            or (point < 32 and (point < 9 or point == 11 or point > 13))
            or 0x7F <= point < 0xA0
        ):
            at += width
            continue
        if blank:
            if pre > 0 and point == 10 and not intitle and length > begun:
                text[length] = 10
                length += 1
                space = False
            elif pre > 0 and not intitle and length > begun:
                text[length] = 32
                length += 1
                space = False
            else:
                space = True
            at += width
            continue
        if intitle:
            if letter or digit or cjk:
                if cjk:
                    value = FNV
                    for n in range(width):
                        value = ((value ^ html[at + n]) * PRIME) & MASK
                    if titled < 64:
                        title[titled] = value
                        titled += 1
                else:
                    if inword == 0:
                        value = FNV
                    for n in range(width):
                        lower = html[at + n]
                        if 65 <= lower <= 90:
                            lower |= 32
                        value = ((value ^ lower) * PRIME) & MASK
                    inword += 1
            at += width
            continue
        if length == begun:
            row[AT] = at
        elif space:
            text[length] = 32
            length += 1
            row[CHARS] += 1
        space = False
        if point == 60 or point == 62 or (point == 38 and width > 1):
            text[length] = point
            length += 1
        else:
            for n in range(width):
                text[length + n] = html[at + n]
            length += width
        row[CHARS] += 1
        row[LAST] = point
        if letter or digit:
            if inword == 0:
                value = FNV
                row[WORDS] += 1
                if links > 0:
                    row[LINKED] += 1
                if bold > 0:
                    row[BOLD] += 1
                if 65 <= point <= 90:
                    row[CAPITALS] += 1
            for n in range(width):
                lower = html[at + n]
                if 65 <= lower <= 90:
                    lower |= 32
                value = ((value ^ lower) * PRIME) & MASK
            inword += 1
            if digit:
                row[DIGITS] += 1
        elif cjk:
            row[CJK] += 1
            row[WORDS] += 1
            if links > 0:
                row[LINKED] += 1
            if bold > 0:
                row[BOLD] += 1
            single = FNV
            for n in range(width):
                single = ((single ^ html[at + n]) * PRIME) & MASK
            end_word(row, single, 1, title, titled, words)
        elif point == 46 or point == 33 or point == 63 or point == 0x3002 or point == 0xFF01 or point == 0xFF1F:
            row[SENTENCES_] += 1
        elif point == 44 or point == 0xFF0C or point == 0x3001 or point == 59 or point == 0xFF1B:
            row[COMMAS] += 1
        elif point == 36 or point == 0xA3 or point == 0xA5 or point == 0x20AC or point == 0x20B9:
            row[PRICES] += 1
        elif point == 124 or point == 0xA9 or point == 0xBB or point == 0x203A or point == 0xB7 or point == 0x2022 or point == 62:
            row[MARKS] += 1
        at += width
    if length > begun:
        if inword > 0 and not intitle:
            end_word(row, value, inword, title, titled, words)
        row[START] = begun
        row[END] = length
        row[NODE] = holder
        row[WORD_AT], row[WORD_END] = before, words[0]
        count += 1
    recite(html, marks, marked, words, blocks, count, page)
    page[0] = elements
    page[3] = titled
    return text[:length].copy(), blocks[:count].copy(), nodes[:nodes_made].copy(), page, marks[:marked].copy()


OWN = (
    "chars words cjk digits capitals sentences commas stops linked links bold titled broken marks ends longest letters"
    " place offset before from_start from_end since_first_heading words_since_first_heading level children"
    " prices described recited same again since_heading heading_words heading_titled"
)
HOLDERS = "p li h1 h2 h3 h4 h5 h6 td th div dt dd blockquote pre figcaption button section summary"
ABOVE = "noscript p li ul ol table td article main section nav header footer aside form blockquote pre figure dl details button h1 h2 h3 h4"
OFFSETS = (-3, -2, -1, 1, 2, 3)
CLIMB = 6
FEATURES = (
    *OWN.split(),
    *(f"is_{name}" for name in HOLDERS.split()),
    *(f"in_{name}" for name in ABOVE.split()),
    *(f"near_{name}" for name in SEMANTICS),
    "hidden",
    *(f"says_{name}" for name in SAYINGS),
    *(f"headed_{name}" for name in SAYINGS),
    *(f"{what}{offset:+d}" for offset in OFFSETS for what in ("words", "linked", "ends", "shared")),
    *(f"{what}_within_{reach}" for reach in (4, 12) for what in ("words", "linked")),
    "prose_before", "prose_after",
    *(f"{what}_up{level}" for level in range(CLIMB) for what in ("words", "linked", "mean", "prose")),
    "half_core", "core", "core_level",
    "path_blocks", "path_words", "path_linked", "path_share",
    "twins", "twins_level", "twin_words", "twin_linked",
    "page_words", "page_linked", "page_blocks", "page_prose", "page_prose_share", "page_cjk", "page_articles", "page_h1",
    *(f"page_{kind}" for kind in KINDS),
    *(f"page_says_{name}" for name in SAYINGS),
    "page_prices", "page_repeated", "page_recited", "page_levels", "page_slug",
    *(f"address_{kind}" for kind in ADDRESSES),
)  # fmt: skip
_HOLDERS = np.array([_NUMBER[name] for name in HOLDERS.split()])
_ABOVE = np.full(len(TAGS) + 1, -1, np.int64)
for _place, _name in enumerate(ABOVE.split()):
    _ABOVE[_NUMBER[_name]] = _place
N_HOLDERS, N_ABOVE, N_SEMANTICS, N_KINDS, N_FEATURES = len(_HOLDERS), len(ABOVE.split()), len(SEMANTICS), len(KINDS), len(FEATURES)
N_SAYINGS, N_ADDRESSES = len(SAYINGS), len(ADDRESSES)
_IS_HEADING = np.isin(
    np.arange(len(TAGS) + 1), [_NUMBER[name] for name in ["h1", "h2", "h3", "h4", "h5", "h6", "summary", "legend"] if name in _NUMBER]
)


@njit(types.int64(types.int64[:, ::1], types.int64, types.float64), cache=True)
def core_of(nodes: Ints, total: int, share: float) -> int:
    """The deepest node that holds at least a share of the page's prose."""
    best = 0
    for node in range(1, nodes.shape[0]):
        if nodes[node, N_PROSE] >= share * total and nodes[node, LEVEL] > nodes[best, LEVEL]:
            best = node
    return best


@njit(types.int64(types.int64[:, ::1], INT, INT), cache=True)
def climb(nodes: Ints, node: int, core: int) -> int:
    """Steps up from the core to the first node that is also above `node`."""
    steps = 0
    while core != node:
        if nodes[core, LEVEL] >= nodes[node, LEVEL]:
            core = nodes[core, PARENT]
            steps += 1
        else:
            node = nodes[node, PARENT]
    return steps


@njit(types.float32[:, ::1](types.int64[:, ::1], types.int64[:, ::1], types.int64[::1], INT), cache=True)
def describe(blocks: Ints, nodes: Ints, page: Ints, size: int) -> Floats:
    """What is known of each block: a row of FEATURES. Fills the sums of `nodes` on the way. `size`: bytes of the serialised page."""
    n, m = blocks.shape[0], nodes.shape[0]
    found = np.zeros((n, N_FEATURES), np.float32)
    total = linked = prose = cjk = headings = articles = 0
    is_prose = np.zeros(n, np.bool_)
    first = n
    for b in range(n):
        row = blocks[b]
        node = row[NODE]
        nodes[node, N_WORDS] += row[WORDS]
        nodes[node, N_LINKED] += row[LINKED]
        nodes[node, N_BLOCKS] += 1
        total += row[WORDS]
        linked += row[LINKED]
        cjk += row[CJK]
        if row[WORDS] >= 12 and 3 * row[LINKED] < row[WORDS] and row[SENTENCES_] + row[COMMAS] > 0:
            is_prose[b] = True
            nodes[node, N_PROSE] += row[WORDS]
            prose += row[WORDS]
        if nodes[node, NAME] == H1:
            headings += 1
            first = min(first, b)
    for node in range(m - 1, 0, -1):
        above = nodes[node, PARENT]
        for column in (N_WORDS, N_LINKED, N_BLOCKS, N_PROSE):
            nodes[above, column] += nodes[node, column]
        nodes[above, N_CHILDREN] += 1
        articles += nodes[node, NAME] == ARTICLE
    # Twins: siblings of one element name and class. A table from (parent, signature) to its first node; the group's sums stand there.
    slots = 64
    while slots < 2 * (m + n):
        slots *= 2
    slot = np.full(slots, -1, np.int64)
    members = np.zeros((m, 3), np.int64)
    for node in range(1, m):
        above = nodes[node, PARENT]
        nodes[node, PATH] = (nodes[above, PATH] * PRIME ^ nodes[node, SIGN]) & MASK
        at = (above * 2654435761 ^ nodes[node, SIGN]) & (slots - 1)
        while slot[at] >= 0 and (nodes[slot[at], PARENT] != above or nodes[slot[at], SIGN] != nodes[node, SIGN]):
            at = (at + 1) & (slots - 1)
        if slot[at] < 0:
            slot[at] = node
        nodes[node, TWIN] = slot[at]
        members[slot[at], 0] += 1
        members[slot[at], 1] += nodes[node, N_WORDS]
        members[slot[at], 2] += nodes[node, N_LINKED]
    # Blocks of one text.
    slot[:] = -1
    same = np.zeros((n, 2), np.int64)  # the first block with the text, how many there are
    said = np.zeros(N_SAYINGS, np.int64)
    prices = repeated = 0
    for b in range(n):
        row = blocks[b]
        for bit in range(N_SAYINGS):
            said[bit] += row[SAID] >> bit & 1
        prices += row[PRICES] > 0
        at = row[TEXT_HASH] & (slots - 1)
        while slot[at] >= 0 and blocks[slot[at], TEXT_HASH] != row[TEXT_HASH]:
            at = (at + 1) & (slots - 1)
        if slot[at] < 0:
            slot[at] = b
        else:
            repeated += row[WORDS]
        same[b, 0] = slot[at]
        same[slot[at], 1] += 1
    # Blocks of one path (element names and classes from the root).
    slot[:] = -1
    paths = np.zeros((n, 3), np.int64)
    for b in range(n):
        path = nodes[blocks[b, NODE], PATH]
        at = path & (slots - 1)
        while slot[at] >= 0 and nodes[blocks[slot[at], NODE], PATH] != path:
            at = (at + 1) & (slots - 1)
        if slot[at] < 0:
            slot[at] = b
        blocks[b, KIN] = slot[at]
        paths[slot[at], 0] += 1
        paths[slot[at], 1] += blocks[b, WORDS]
        paths[slot[at], 2] += blocks[b, LINKED]
    half = core_of(nodes, prose, 0.5)
    most = core_of(nodes, prose, 0.85)
    sums = np.zeros((n + 1, 2), np.int64)
    for b in range(n):
        sums[b + 1, 0] = sums[b, 0] + blocks[b, WORDS]
        sums[b + 1, 1] = sums[b, 1] + blocks[b, LINKED]
    near = np.zeros(N_SEMANTICS + 1, np.float32)
    above_count = np.zeros(N_ABOVE, np.float32)
    last_prose = -50
    heading = -1
    for b in range(n):
        row = blocks[b]
        node = row[NODE]
        words = np.float32(max(1, row[WORDS]))
        last = row[LAST]
        ends = last == 46 or last == 33 or last == 63 or last == 0x3002 or last == 0xFF01 or last == 0xFF1F or last == 0x201D or last == 58
        x = found[b]
        x[0] = row[CHARS]
        x[1] = row[WORDS]
        x[2] = row[CJK] / words
        x[3] = row[DIGITS] / max(1, row[CHARS])
        x[4] = row[CAPITALS] / words
        x[5] = row[SENTENCES_]
        x[6] = row[COMMAS] / words
        x[7] = row[STOPS] / words
        x[8] = row[LINKED] / words
        x[9] = row[LINKS]
        x[10] = row[BOLD] / words
        x[11] = row[TITLED] / words
        x[12] = row[BROKEN]
        x[13] = row[MARKS]
        x[14] = ends
        x[15] = row[LONGEST]
        x[16] = row[CHARS] / words
        x[17] = b / n
        x[18] = row[AT] / size
        x[19] = sums[b, 0] / max(1, total)
        x[20] = b
        x[21] = n - b
        x[22] = b - first if first < n else -1000
        x[23] = sums[b, 0] - sums[first, 0] if first < n else -100000
        x[24] = nodes[node, LEVEL]
        x[25] = nodes[node, N_CHILDREN]
        x[26] = row[PRICES]
        x[27] = row[DESCRIBED] / words
        x[28] = row[RECITED] / words
        x[29] = same[same[b, 0], 1]
        x[30] = same[b, 0] < b
        if _IS_HEADING[nodes[node, NAME]] or _IS_HEADING[nodes[nodes[node, PARENT], NAME]]:
            heading = b
        x[31] = b - heading if heading >= 0 else -1
        x[32] = blocks[heading, WORDS] if heading >= 0 else -1
        x[33] = blocks[heading, TITLED] / max(1, blocks[heading, WORDS]) if heading >= 0 else -1
        k = 34
        for name in _HOLDERS:
            x[k] = nodes[node, NAME] == name
            k += 1
        near[:] = 0
        above_count[:] = 0
        up = node
        distance = 0
        while up > 0:
            place = _ABOVE[nodes[up, NAME]]
            if place >= 0:
                above_count[place] += 1
            meaning = nodes[up, MEANING]
            if meaning:
                for bit in range(N_SEMANTICS):
                    if meaning >> bit & 1 and near[bit] == 0:
                        near[bit] = 1 / np.float32(1 + distance)
                if meaning & HIDDEN:
                    near[N_SEMANTICS] = 1
            up = nodes[up, PARENT]
            distance += 1
        for place in range(N_ABOVE):
            x[k] = above_count[place]
            k += 1
        for bit in range(N_SEMANTICS + 1):
            x[k] = near[bit]
            k += 1
        for bit in range(N_SAYINGS):
            x[k + bit] = row[SAID] >> bit & 1
            x[k + N_SAYINGS + bit] = blocks[heading, SAID] >> bit & 1 if heading >= 0 else -1
        k += 2 * N_SAYINGS
        for offset in OFFSETS:
            other = b + offset
            if 0 <= other < n:
                x[k] = blocks[other, WORDS]
                x[k + 1] = blocks[other, LINKED] / max(1, blocks[other, WORDS])
                final = blocks[other, LAST]
                x[k + 2] = final == 46 or final == 33 or final == 63 or final == 0x3002 or final == 0xFF01 or final == 0xFF1F
                x[k + 3] = nodes[blocks[other, NODE], PARENT] == nodes[node, PARENT] or blocks[other, NODE] == node
            else:
                x[k] = -1
            k += 4
        for reach in (4, 12):
            low, high = max(0, b - reach), min(n, b + reach + 1)
            x[k] = sums[high, 0] - sums[low, 0]
            x[k + 1] = (sums[high, 1] - sums[low, 1]) / max(1, sums[high, 0] - sums[low, 0])
            k += 2
        x[k] = min(50, b - last_prose)
        after = b + 1
        while after < n and after < b + 50 and not is_prose[after]:
            after += 1
        x[k + 1] = after - b if after < n else 50
        if is_prose[b]:
            last_prose = b
        k += 2
        up = node
        for _ in range(CLIMB):
            x[k] = nodes[up, N_WORDS]
            x[k + 1] = nodes[up, N_LINKED] / max(1, nodes[up, N_WORDS])
            x[k + 2] = nodes[up, N_WORDS] / max(1, nodes[up, N_BLOCKS])
            x[k + 3] = nodes[up, N_PROSE] / max(1, prose)
            k += 4
            up = nodes[up, PARENT]
        x[k] = climb(nodes, node, half)
        x[k + 1] = climb(nodes, node, most)
        x[k + 2] = nodes[node, LEVEL] - nodes[most, LEVEL]
        k += 3
        path = paths[blocks[b, KIN]]
        x[k] = path[0]
        x[k + 1] = path[1] / path[0]
        x[k + 2] = path[2] / max(1, path[1])
        x[k + 3] = path[1] / max(1, total)
        k += 4
        up = node
        distance = 0
        while up > 0 and members[nodes[up, TWIN], 0] < 3:
            up = nodes[up, PARENT]
            distance += 1
        if up > 0:
            group = members[nodes[up, TWIN]]
            x[k] = group[0]
            x[k + 1] = distance
            x[k + 2] = group[1] / group[0]
            x[k + 3] = group[2] / max(1, group[1])
        else:
            x[k + 1] = -1
        k += 4
        x[k] = total
        x[k + 1] = linked / max(1, total)
        x[k + 2] = n
        x[k + 3] = prose
        x[k + 4] = prose / max(1, total)
        x[k + 5] = cjk / max(1, total)
        x[k + 6] = articles
        x[k + 7] = headings
        k += 8
        for bit in range(N_KINDS):
            x[k] = page[2] >> bit & 1
            k += 1
        for bit in range(N_SAYINGS):
            x[k] = said[bit] / n
            k += 1
        x[k] = prices / n
        x[k + 1] = repeated / max(1, total)
        x[k + 2] = page[4]
        x[k + 3] = page[6]
        x[k + 4] = page[7]
        k += 5
        for bit in range(N_ADDRESSES):
            x[k] = page[5] >> bit & 1
            k += 1
    return found


BESIDE = (-3, -2, -1, 1, 2, 3)
WINDOWS = (2, 6, 20)
CONTEXT = (
    "first",
    *(f"first{offset:+d}" for offset in BESIDE),
    *(f"first_within_{reach}" for reach in WINDOWS),
    *(f"first_up{level}" for level in range(CLIMB)),
    "first_path", "first_twins", "first_page", "first_words", "first_before", "first_after", "first_heading", "first_headed",
)  # fmt: skip
"""What the first forest's chances say about a block's surroundings; what the second forest sees beside FEATURES."""
N_CONTEXT = len(CONTEXT)


@njit(types.float32[:, ::1](types.int64[:, ::1], types.int64[:, ::1], types.float64[::1]), cache=True)
def context(blocks: Ints, nodes: Ints, chance: Doubles) -> Floats:
    """A row of CONTEXT for each block. Means are over words."""
    n, m = blocks.shape[0], nodes.shape[0]
    found = np.zeros((n, N_CONTEXT), np.float32)
    sums = np.zeros((n + 1, 2))
    held = np.zeros((m, 2))
    kin = np.zeros((n, 2))
    twins = np.zeros((m, 2))
    headed = np.zeros((n + 1, 2))
    under = np.zeros(n, np.int64)
    heading = n
    for b in range(n):
        words = 0.5 + blocks[b, WORDS]
        name, above = nodes[blocks[b, NODE], NAME], nodes[nodes[blocks[b, NODE], PARENT], NAME]
        if _IS_HEADING[name] or _IS_HEADING[above]:
            heading = b
        under[b] = heading
        headed[heading, 0] += words
        headed[heading, 1] += words * chance[b]
        sums[b + 1, 0] = sums[b, 0] + words
        sums[b + 1, 1] = sums[b, 1] + words * chance[b]
        held[blocks[b, NODE], 0] += words
        held[blocks[b, NODE], 1] += words * chance[b]
        kin[blocks[b, KIN], 0] += words
        kin[blocks[b, KIN], 1] += words * chance[b]
    for node in range(m - 1, 0, -1):
        above, twin = nodes[node, PARENT], nodes[node, TWIN]
        for column in range(2):
            held[above, column] += held[node, column]
            twins[twin, column] += held[node, column]
    for b in range(n):
        x = found[b]
        x[0] = chance[b]
        k = 1
        for offset in BESIDE:
            x[k] = chance[b + offset] if 0 <= b + offset < n else -1
            k += 1
        for reach in WINDOWS:
            low, high = max(0, b - reach), min(n, b + reach + 1)
            x[k] = (sums[high, 1] - sums[low, 1]) / (sums[high, 0] - sums[low, 0])
            k += 1
        up = blocks[b, NODE]
        twin = 0
        for _ in range(CLIMB):
            x[k] = held[up, 1] / held[up, 0]
            k += 1
            if twin == 0 and twins[nodes[up, TWIN], 0] > 1.5 * held[up, 0]:
                twin = nodes[up, TWIN]
            up = nodes[up, PARENT]
        x[k] = kin[blocks[b, KIN], 1] / kin[blocks[b, KIN], 0]
        x[k + 1] = twins[twin, 1] / twins[twin, 0] if twin > 0 else -1
        x[k + 2] = sums[n, 1] / sums[n, 0]
        x[k + 3] = sums[n, 1]
        x[k + 4] = sums[b, 1] / sums[n, 1]
        x[k + 5] = (sums[n, 1] - sums[b + 1, 1]) / sums[n, 1]
        x[k + 6] = chance[under[b]] if under[b] < n else -1
        x[k + 7] = headed[under[b], 1] / headed[under[b], 0]
    return found


@njit(types.void(types.float32[:, ::1], types.int64[:, ::1], types.float32[:, ::1], types.float32[:, ::1], types.float64[::1]), cache=True)
def forest(rows: Floats, features: Ints, thresholds: Floats, leaves: Floats, scores: Doubles) -> None:
    """Add each tree's leaf to the row's score. A tree asks the same question of all rows at a level (an oblivious tree): bit d of a leaf's place is x[feature d] > threshold d."""
    trees, depth = features.shape
    n = rows.shape[0]
    columns = rows.T.copy()  # a question is asked of all rows at once, by the processor's vector instructions
    leaf = np.empty(n, np.int32)
    for tree in range(trees):
        leaf[:] = 0
        for level in range(depth):
            column, threshold, bit = columns[features[tree, level]], thresholds[tree, level], np.int32(1 << level)
            for b in range(n):
                leaf[b] |= bit if column[b] > threshold else np.int32(0)
        for b in range(n):
            scores[b] += leaves[tree, leaf[b]]


@njit(types.float64(types.int64[:, ::1], types.float64[::1], types.boolean[::1]), cache=True)
def choose(blocks: Ints, chance: Doubles, chosen: npt.NDArray[np.bool_]) -> float:
    """Choose the blocks whose words have the greatest expected F1: those likelier than half of that F1 (Lipton et al. 2014). -> that F1

    Where it is above .8, more is asked: on a page that is clear, a dubious line (a dateline, the site's name) is worth little and may be boilerplate.
    """
    order = np.argsort(-chance)
    wanted = 0.0
    for b in range(blocks.shape[0]):
        wanted += blocks[b, WORDS] * chance[b]
    taken = right = best = 0.0
    for n in order:
        taken += blocks[n, WORDS]
        right += blocks[n, WORDS] * chance[n]
        if right > 0:
            best = max(best, 2 * right / (taken + wanted))
    cut = best / 2 + SURE * max(0.0, best - 0.8)
    for n in order:
        chosen[n] = chance[n] > cut
    return best


@njit(types.int64[:, ::1](types.int64[:, :], types.int64[:, ::1]), cache=True)
def lines_of(blocks: Ints, nodes: Ints) -> Ints:
    """(list item, table row) of each block: the nearest of its element, the parent and the grandparent; 0 for none.

    An item of many blocks is a container, no line. A row of which a cell holds more than one block is none: such a table lays out the page.
    """
    found = np.zeros((blocks.shape[0], 2), np.int64)
    for b in range(blocks.shape[0]):
        node = blocks[b, NODE]
        item = cell = False
        for _ in range(3):
            name = nodes[node, NAME]
            if name == LI and not item:
                item = True
                if nodes[node, N_BLOCKS] <= 3:
                    found[b, 0] = node
            if name in (TD, TH) and not cell:
                cell = True
                row = nodes[node, PARENT]
                if nodes[node, N_BLOCKS] == 1 and nodes[row, NAME] == TR and nodes[row, N_BLOCKS] <= nodes[row, N_CHILDREN]:
                    found[b, 1] = row
            node = nodes[node, PARENT]
    return found
