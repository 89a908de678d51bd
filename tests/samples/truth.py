"""What is planted in the sample: source/web/index.json and source/wiki/truth.json -> OUT/truth.json.

Similarities are computed here from the true main texts, so an edit of a page cannot leave a stale number behind.
Called by build.py.
"""

import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import crawl

KEPT = ("article", "near_duplicate", "near_but_kept", "chain", "exact_duplicate", "contaminated")
LISTED = ("spam", "repetition", "short", "links_only", "lorem", "unnatural", "other_language", "contaminated",
          "truncated", "clipped", "not_html", "not_found", "redirect", "empty", "deep", "huge")  # fmt: skip
CJK = re.compile(r"[\u3400-\u9fff]+")


def shingles(text: str) -> set[str]:
    """Runs of five words, and of five Chinese characters; a shorter text is one shingle."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    words = CJK.sub(" ", text).split() if CJK.search(text) is None else []
    found = {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}
    for run in CJK.findall(text):
        found.update(run[at : at + 5] for at in range(len(run) - 4))
    return found or {text}


def jaccard(a: str, b: str) -> float:
    """Share of the shingles of either text that both have."""
    of_a, of_b = shingles(a), shingles(b)
    return len(of_a & of_b) / len(of_a | of_b)


def build(source: Path, out: Path) -> None:
    """Write truth.json."""
    web = source / "web"
    entries = crawl.load(web)
    by_file = {entry["file"]: entry for entry in entries if entry["file"]}
    text = {entry["url"]: crawl.main_text(web, entry) for entry in entries if entry["kind"] in KEPT}

    def pairs(kind: str) -> list[dict[str, Any]]:
        found = []
        for entry in entries:
            if entry["kind"] == kind:
                a, b = by_file[entry["of"]]["url"], entry["url"]
                found.append({"a": a, "b": b, "jaccard": round(jaccard(text[a], text[b]), 3), "language": entry["language"]})
        return found

    chain = [entry["url"] for entry in entries if entry["file"] in ("chain-a.html", "chain-b.html", "chain-c.html")]
    a, b, c = (text[url] for url in chain)
    truth = {
        "pages": sum(e["status"] == 200 and e["kind"] not in ("not_html", "clipped") for e in entries),
        "responses": sum(entry["kind"] != "clipped" for entry in entries),
        "kept": [entry["url"] for entry in entries if entry["kind"] in KEPT],
        "near_duplicates": pairs("near_duplicate"),
        "near_but_kept": pairs("near_but_kept"),
        "chain": {
            "urls": chain,
            "jaccard_ab": round(jaccard(a, b), 3),
            "jaccard_bc": round(jaccard(b, c), 3),
            "jaccard_ac": round(jaccard(a, c), 3),
        },
        "exact_duplicates": [[pair["a"], pair["b"]] for pair in pairs("exact_duplicate")],
        **{kind: [entry["url"] for entry in entries if entry["kind"] == kind] for kind in LISTED},
        "layouts": {e["url"]: e["layout"] for e in entries if e["kind"] in KEPT and e["layout"] != "prose"},
        "pii": [{"url": e["url"], "kind": kind, "text": found} for e in entries for kind, found in e.get("pii", [])],
        "not_pii": [{"url": entry["url"], "text": found} for entry in entries for found in entry.get("not_pii", [])],
        "charset": [
            {"url": entry["url"], "encoding": entry["encoding"], "expect_contains": entry["expect"]}
            for entry in entries
            if "expect" in entry
        ],
    }
    wiki = source / "wiki" / "truth.json"
    whole = {
        "crawl": truth,
        "main_text": {e["url"]: text[e["url"]] for e in entries if e["kind"] == "article" and e["layout"] == "prose"},
        "wiki": json.loads(wiki.read_text("utf-8")) if wiki.exists() else {},
    }
    (out / "truth.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")
