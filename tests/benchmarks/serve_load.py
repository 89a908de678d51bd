"""`ingot serve` under load: tokens/s with 16 clients at once against one after the other, the same tokens in both, and the wait for the first one.

    python tests/benchmarks/serve_load.py [--clients 16] [--requests 64] [--core 0] [--quick] [--record]

Random weights in the shapes of recipes demo and small (30M), fp32, one thread; the server is a process of its own on one core, clients are on the others.
Requests are chats of unequal prompts, 64 tokens each, greedy, by HTTP as event streams. Sequential is one client without company; both ways twice, in
turns, the better of each. The peer is the server itself without batching: what a server that answers one after the other gives.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from figures import REPO, Figure, arguments, conclude, table

from flows import recipes
from model import families, tokenizer
from model.config import ModelConfig
from model.transformer import Transformer

sys.path.insert(0, str(REPO / "tests"))
from services import free_port

TOKENS = 64
GOAL = 8.0


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--core", type=int, default=0)
    given = parser.parse_args()
    conclude(given, measure(given))


def measure(given: argparse.Namespace) -> list[Figure]:
    """Both shapes; prints a table."""
    requests, found, rows = (4 if given.quick else given.requests), [], []
    shapes = {"tiny": recipes.tiny().model} if given.quick else {"demo": recipes.demo().model, "small": recipes.small().model}
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {given.core} or {given.core})
    for name, shape in shapes.items():
        with tempfile.TemporaryDirectory(prefix="ingot-serve-") as folder:
            write(Path(folder), shape)
            with served(Path(folder), given) as url:
                ask(url, requests // 4, 1)  # warm
                alone, together = [], []
                for _ in range(1 if given.quick else 2):
                    alone.append(ask(url, max(2, requests // 4), 1))
                    together.append(ask(url, requests, given.clients))
        texts = [[answer[2] for answer in run[1]] for run in (alone[0], together[0])]
        same = sum(a == b for a, b in zip(*texts, strict=False))
        speeds = [max(sum(one[1] for one in run[1]) / run[0] for run in runs) for runs in (alone, together)]
        ratio = speeds[1] / speeds[0]
        waits = sorted(one[0] for one in min(together)[1])
        shown = ", ".join(f"p{share} {1000 * waits[min(len(waits) - 1, len(waits) * share // 100)]:.0f} ms" for share in (50, 95, 99))
        first = 1000 * statistics.median(one[0] for one in min(alone)[1])
        rows.append(
            (name, f"{speeds[0]:,.0f}", f"{speeds[1]:,.0f}", f"{ratio:.1f}", f"{first:.0f} ms", shown, f"{same} of {len(texts[0])}")
        )
        goal = (f"≥ {GOAL:g}", ratio >= GOAL)
        found.append(
            Figure(
                f"serve {name}: tokens/s of {given.clients} clients at once : one after the other",
                f"{ratio:.1f} ({speeds[1]:,.0f} : {speeds[0]:,.0f})",
                *goal,
            )
        )
        found.append(Figure(f"serve {name}: first token with {given.clients} clients (alone {first:.0f} ms)", shown))
        found.append(
            Figure(f"serve {name}: answers in company that equal those alone", f"{same} of {len(texts[0])}", "all", same == len(texts[0]))
        )
    table(("shape", "tokens/s alone", "together", "ratio", "first token alone", "together", "same"), rows)
    return found


def write(folder: Path, shape: ModelConfig) -> None:
    """A model directory of random weights."""
    words = tokenizer.train([path.read_text(encoding="utf-8") for path in sorted((REPO / "tests/samples/files").glob("*.txt"))], 2048)
    model = Transformer(shape, tokenizer.vocab_size(words))
    model.init_weights(0)
    families.save(model, shape, model.vocab, folder)
    tokenizer.save(words, folder)


@contextlib.contextmanager
def served(folder: Path, given: argparse.Namespace) -> Iterator[str]:
    """Address of `ingot serve` on one core."""
    port = free_port()
    command = ["taskset", "-c", str(given.core), str(Path(sys.executable).with_name("ingot")), "serve", str(folder), "--port", str(port)]
    command += ["--threads", "1", "--slots", str(given.clients), "--waiting", "1000", "--store", str(folder / "store")]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{url}/health")
                break
            if process.poll() is not None:
                sys.exit((folder / "log").read_text())
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


def ask(url: str, requests: int, clients: int) -> tuple[float, list[tuple[float, int, str]]]:
    """(seconds of all, [(seconds to the first text, tokens, text)] in the order of the requests)."""

    async def one(http: httpx.AsyncClient, number: int, gate: asyncio.Semaphore) -> tuple[float, int, str]:
        body = {
            "messages": [{"role": "user", "content": f"{number}: " + "What is a lighthouse? " * (1 + number % 3)}],
            "temperature": 0, "max_tokens": TOKENS, "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        async with gate:
            begun, first, text, tokens = time.perf_counter(), 0.0, "", 0
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    event = json.loads(line[6:])
                    for choice in event["choices"]:
                        piece = choice["delta"].get("content") or ""
                        if piece and not first:
                            first = time.perf_counter() - begun
                        text += piece
                    tokens = event.get("usage", {}).get("completion_tokens", tokens)
            return first or time.perf_counter() - begun, tokens, text

    async def all_() -> tuple[float, list[tuple[float, int, str]]]:
        gate = asyncio.Semaphore(clients)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=clients)) as http:
            begun = time.perf_counter()
            found = await asyncio.gather(*(one(http, number, gate) for number in range(requests)))
            return time.perf_counter() - begun, list(found)

    return asyncio.run(all_())


if __name__ == "__main__":
    main()
