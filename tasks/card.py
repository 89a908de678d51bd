"""The model card: what a registered version was made of, how it scored, its limits, how to use it; markdown, shown by MLflow as the description."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tasks.corpus.manifest import Manifest, Store

Family = Mapping[str, Sequence[Manifest]]
"""Manifests by stage."""


def lineage(store: Store, manifest: Manifest) -> dict[str, list[Manifest]]:
    """All manifests that a stage's output was made of, itself included, by stage; nearest first."""
    found: dict[str, list[Manifest]] = {}
    queue, known = [manifest], {manifest.address}
    while queue:
        one = queue.pop(0)
        found.setdefault(one.stage, []).append(one)
        for address in one.inputs.values():
            source = store.manifest(address) if address not in known else None
            known.add(address)
            queue += [source] if source else []
    return found


def parameters(weights: Path) -> int:
    """Numbers in a safetensors file, by its header (8 bytes of length, then JSON)."""
    with open(weights, "rb") as handle:
        header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def counts(family: Family, weights: Path) -> dict[str, int]:
    """Documents, training tokens and parameters of a model."""
    found = {"documents": sum(m.kept for m in family.get("decontaminate", ()))}
    found["tokens"] = sum(m.info.get("tokens", {}).get("train", 0) for m in family.get("encode", ()))
    return found | {"parameters": parameters(weights)}


def card(
    name: str,
    tags: Mapping[str, str],
    family: Family,
    size: Mapping[str, int],
    evaluate: Manifest,
    champion: Mapping[str, float],
    said: tuple[str, str],
) -> str:
    """The version's description. `tags` hold recipe and gate, `champion` the scores it was compared with, `said` a question and the packaged model's answer."""
    raw = [m for m in family.get("ingest", ()) if m.info.get("role", "source") in ("source", "examples")]
    passed = [
        m for stage in ("extract", "quality_model", "filter", "dedup", "decontaminate", "encode") for m in reversed(family.get(stage, ()))
    ]
    shape = next(m.info["model"] for stage in ("finetune", "pretrain") for m in family.get(stage, ()))
    begun = (
        f" It began as {family['adopt'][0].info['source']}, a model made elsewhere: its licence applies too." if "adopt" in family else ""
    )
    scores, clean = evaluate.info["metrics"], evaluate.info.get("clean", {})
    books = [(m.stage, f"{m.seen:,}", f"{m.kept:,}", _reasons(m)) for m in passed]
    bounds = {metric: f"{low:.4f} to {evaluate.info['high'][metric]:.4f}" for metric, low in evaluate.info.get("low", {}).items()}
    figures = [(m, f"{value:.4f}", bounds.get(m, ""), _figure(clean, m), _figure(champion, m)) for m, value in sorted(scores.items())]
    shares = [_share(kind, facts) for m in family.get("encode", ()) for kind, facts in m.info["mixture"].items()]
    years = [f"{year} {count:,}" for m in family.get("encode", ()) for year, count in m.info["tokens_by_year"].items()]
    request = json.dumps({"inputs": [{"prompt": said[0]}]})
    return f"""Built by Ingot from recipe **{tags["ingot.recipe"]}**. Gate: {tags["ingot.gate"]}.

A {shape["kind"]} of {size["parameters"]:,} parameters, layers: {shape["layers"]} of width {shape["width"]}, context: {shape["context"]:,} tokens; \
trained on {size["tokens"]:,} tokens of {size["documents"]:,} documents.{begun}

## Data

{_table(("source", "snapshot", "files", "licence"), "llrl", [_origin(m) for m in raw])}

Every record is accounted for:

{_table(("stage", "in", "out", "set aside"), "lrrl", books)}

Trained on, validation apart:

{_table(("source/language", "documents", "tokens", "epochs asked", "epochs got"), "lrrrr", shares)}

Tokens by year of the record, validation included: {", ".join(years)}.

## Scores

{_table(("metric", "this model", "95% of it", "on clean items", "champion"), "lrrrr", figures)}

Bits per byte and losses are better when lower, all else when higher. Scored on the recipe's own evaluation files; 95% by resampling items; clean are \
items of which nothing was in the corpus before it was cleaned, shown where that is not all of them.

Asked “{said[0]}” it said:

> {" ".join(said[1].split())[:400] or "(nothing)"}

## Limits

Answers can be wrong or invented. It knows what its corpus says, and nothing after the snapshots above.

## How to use

```sh
ingot sample {name}@candidate "{said[0]}"
mlflow models serve --env-manager local -m models:/{name}@candidate -p 5001
curl localhost:5001/invocations -H 'Content-Type: application/json' \\
  -d '{request}'
```"""


def _share(kind: str, facts: Mapping[str, float]) -> tuple[str, str, str, str, str]:
    """A line of the mixture, as encode's manifest has it."""
    return kind, f"{facts['documents']:,}", f"{facts['tokens']:,}", f"{facts['epochs']:g}", f"{facts['epochs_got']:.3g}"


def _figure(values: Mapping[str, float], metric: str) -> str:
    return f"{values[metric]:.4f}" if metric in values else ""


def _origin(manifest: Manifest) -> tuple[str, str, str, str]:
    info = manifest.info
    names = ", ".join(f"{wiki} {date}" for wiki, date in info.get("snapshots", {}).items()) or str(info.get("snapshot", ""))
    role = " (instruction examples)" if info.get("role") == "examples" else ""
    return f"{info.get('source', '')}{role}", names, f"{len(manifest.files):,}", str(info.get("license", ""))


def _reasons(manifest: Manifest) -> str:
    found = sorted(((count, reason) for reason, count in manifest.rejected.items() if count), reverse=True)
    shown = ", ".join(f"{reason} {count:,}" for count, reason in found[:3])
    return shown + (f", {len(found) - 3} more reasons" if len(found) > 3 else "")


def _table(head: Sequence[str], align: str, rows: Sequence[Sequence[str]]) -> str:
    marks = ["---:" if side == "r" else "---" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, marks, *rows))


def roomy(markdown: str) -> str:
    """Markdown with room around every table cell, of which MLflow's page leaves none; a zero-width space keeps it from trimming the en-space."""
    return "\n".join(
        _spaced(line) if line.startswith("|") and not line.startswith(("|-", "| -")) else line for line in markdown.split("\n")
    )


def _spaced(line: str) -> str:
    return "|" + "|".join(f"\u200b\u2002{cell.strip()}\u2002\u200b" for cell in line.strip("|").split("|")) + "|"
