"""A model over HTTP as OpenAI's clients speak it: FastAPI over deploy/serving.py, on loopback unless told otherwise.

    run(Serving(find), Limits(), host="127.0.0.1", port=8000, key="")          # `ingot serve MODEL`

    GET  / (a page to talk to it), /v1/models, /health, /metrics (Prometheus)
    POST /v1/completions, /v1/chat/completions (both also as server-sent events), /v1/embeddings, /feedback (what people think of an answer)

Every answer names the model's version and corpus, in its body (`ingot`) and headers (x-ingot-model, x-ingot-corpus). Errors have OpenAI's form. Without a
key whoever reaches the port may ask; with one, all but / and /health wants it as bearer token. A full queue is 429 with Retry-After; a client that goes away
frees its row at the next step.
"""

import asyncio
import base64
import hmac
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
import prometheus_client as prometheus
import uvicorn
from fastapi import FastAPI
from fastapi import Request as Call
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from deploy.batching import BusyError, Engine, Piece, Request
from deploy.serving import Loaded, Serving
from model import tokenizer
from model.errors import ConfigError, IngotError, InputError
from model.evaluate import embeddings

PAGE = Path(__file__).with_name("page.html")
POLICY = "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    body: int = 1 << 20
    """Bytes."""
    output: int = 4096
    """Tokens of one answer."""
    texts: int = 256
    """Texts of one call for embeddings, prompts of one for completions."""


class Asked(BaseModel):
    """What both kinds of completion have. Fields of OpenAI that are not here are ignored."""

    model_config = ConfigDict(extra="ignore")
    model: Annotated[str, Field(max_length=200)] = ""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Literal[1] = 1
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(max_length=200)] | Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=4)] | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class Message(BaseModel):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Chat(Asked):
    """Body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class Completion(Asked):
    """Body of /v1/completions."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


class Embedding(BaseModel):
    """Body of /v1/embeddings."""

    model_config = ConfigDict(extra="ignore")
    model: Annotated[str, Field(max_length=200)] = ""
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"


class Feedback(BaseModel):
    """What somebody thinks of an answer."""

    messages: Annotated[list[Message], Field(min_length=1)]
    answer: str
    model: str
    rating: Literal["good", "bad"]
    correction: str | None = None


class RefusalError(Exception):
    """An answer in OpenAI's form of an error."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None, headers: dict[str, str] | None = None):
        self.status, self.headers = status, headers or {}
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Gauges:
    """What /metrics shows; a registry of its own, so that two servers of one process do not share it."""

    def __init__(self, serving: Serving):
        self.registry = made = prometheus.CollectorRegistry()
        self.requests = prometheus.Counter("ingot_requests", "Answers by route and status.", ("route", "status"), registry=made)
        self.prompt = prometheus.Counter("ingot_prompt_tokens", "Tokens read.", registry=made)
        self.written = prometheus.Counter("ingot_generated_tokens", "Tokens written.", registry=made)
        marks = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
        self.first = prometheus.Histogram("ingot_first_token_seconds", "From request to first text.", registry=made, buckets=marks)
        self.whole = prometheus.Histogram("ingot_answer_seconds", "From request to the end.", registry=made, buckets=marks)
        for name, told, count in (
            ("ingot_active_requests", "Answers being written.", "active"),
            ("ingot_waiting_requests", "Requests without a row.", "waiting"),
        ):
            gauge = prometheus.Gauge(name, told, registry=made)
            gauge.set_function(partial(_of_engine, serving, count))


class Answer:
    """One request under way: its pieces come from the engine's thread to this event loop."""

    def __init__(self, engine: Engine, wanted: Request, gauges: Gauges):
        self._loop, self._pieces, self._gauges = asyncio.get_running_loop(), asyncio.Queue[Piece](), gauges
        wanted.emit = self._arrived
        self._begun, self.wanted = time.perf_counter(), wanted
        self.tokens = 0
        engine.submit(wanted)
        gauges.prompt.inc(len(wanted.ids))

    def _arrived(self, piece: Piece) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody listens
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Until the end; whoever stops listening cancels it. A RefusalError where the computation failed."""
        first = True
        try:
            while True:
                piece = await self._pieces.get()
                if first:
                    self._gauges.first.observe(time.perf_counter() - self._begun)
                    first = False
                self.tokens += len(piece.tokens)
                self._gauges.written.inc(len(piece.tokens))
                if piece.end == "error":
                    raise RefusalError(500, f"the model failed on this request: {piece.error}", "model_error")
                yield piece
                if piece.end:
                    self._gauges.whole.observe(time.perf_counter() - self._begun)
                    return
        finally:
            self.wanted.cancel()


def application(serving: Serving, limits: Limits, key: str = "", notes: Path | None = None) -> FastAPI:
    """The routes over a model that is being served. `notes`: where feedback goes, as annotation records, JSON lines; None takes none."""
    gauges = Gauges(serving)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(serving.close)

    app = FastAPI(title="Ingot", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.exception_handler(RefusalError)
    async def refused(call: Call, error: RefusalError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def no_route(call: Call, error: HTTPException) -> JSONResponse:
        return JSONResponse(RefusalError(error.status_code, str(error.detail), "not_found").body, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def malformed(call: Call, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(word) for word in first["loc"][1:] if not str(word).startswith(("function-", "constrained-", "list[")))
        return JSONResponse(RefusalError(400, f"{where or 'body'}: {first['msg']}", "invalid_value", where or None).body, 400)

    app.add_middleware(Guard, limits=limits, key=key, gauges=gauges)

    def loaded(name: str) -> Loaded:
        """The current model, which must be the one that is asked for."""
        current = serving.current
        if name and name.partition("@")[0] not in (current.found.name, current.found.title):
            raise RefusalError(404, f"there is no model {name!r} here; this server has {current.found.title}", "model_not_found", "model")
        return current

    def begin(current: Loaded, ids: list[int], asked: Asked, most: int | None, logprobs: int | None) -> Answer:
        engine = current.engine
        if engine is None:
            raise RefusalError(400, f"{current.found.title} writes no text; ask /v1/embeddings", "unsupported_model", "model")
        room = engine.room - len(ids)
        if most is not None and most > min(room, limits.output):
            message = f"{most:,} tokens after a prompt of {len(ids):,} exceed what fits: {max(0, min(room, limits.output)):,}"
            raise RefusalError(400, f"{message}. Shorten the prompt, or lower max_tokens", "context_length_exceeded", "max_tokens")
        stop = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        seed = uuid.uuid4().int & (2**63 - 1) if asked.seed is None else asked.seed & (2**63 - 1)
        wanted = Request(
            ids, max(1, min(most or room, limits.output)), asked.temperature, asked.top_p, seed, tuple(filter(None, stop)), logprobs
        )
        try:
            return Answer(engine, wanted, gauges)
        except BusyError as error:
            closing = "stopped" in str(error)
            raise RefusalError(503 if closing else 429, str(error), "overloaded", headers={"retry-after": "1"}) from None
        except (InputError, ConfigError) as error:
            raise RefusalError(400, str(error), "context_length_exceeded" if len(ids) else "invalid_value", "messages") from None

    def base(current: Loaded, kind: str, object_: str) -> dict[str, Any]:
        facts = {"model": current.found.title, "corpus": current.found.corpus}
        return {"id": f"{kind}-{uuid.uuid4().hex}", "object": object_, "created": int(time.time()), "model": current.found.name, "ingot": facts,
                "system_fingerprint": current.found.title}  # fmt: skip

    def headers(current: Loaded) -> dict[str, str]:
        return {"x-ingot-model": current.found.title, "x-ingot-corpus": current.found.corpus}

    def usage(prompt: int, written: int) -> dict[str, int]:
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """A page to talk to the model."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers={"content-security-policy": POLICY})

    @app.post("/feedback")
    async def feedback(body: Feedback) -> dict[str, str]:
        """Keep a record: a chat with its rating, and where there is a correction, the answer that should have been given."""
        if notes is None:
            raise RefusalError(404, "this server keeps no feedback", "not_found")
        chat = [message.model_dump() for message in body.messages]
        row: dict[str, Any] = {"id": uuid.uuid4().hex, "task": "chat", "model": body.model, "rating": body.rating, "time": int(time.time())}
        row |= {"messages": [*chat, {"role": "assistant", "content": body.correction or body.answer}]}
        if body.correction:
            row |= {"rejected": body.answer}
        line = orjson.dumps(row) + b"\n"
        await asyncio.to_thread(_append, notes, line)
        return {"id": row["id"]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Which model serves, what was refused, whether the registry answers."""
        found = serving.current.found
        told = {"status": "ok", "model": found.title, "corpus": found.corpus, "page": found.page, "refused": serving.refused}
        return told | ({"registry": serving.unreachable} if serving.unreachable else {})

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        """Counts for Prometheus."""
        return PlainTextResponse(prometheus.generate_latest(gauges.registry).decode(), media_type=prometheus.CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that is served."""
        found = serving.current.found
        one = {"id": found.name, "object": "model", "created": 0, "owned_by": "ingot", "version": found.version, "corpus": found.corpus}
        return {"object": "list", "data": [one]}

    @app.post("/v1/chat/completions")
    async def chat(body: Chat, call: Call) -> Any:
        """The next turn of a conversation."""
        current = loaded(body.model)
        try:
            ids, _ = tokenizer.render([message.model_dump() for message in body.messages], current.tokenizer, answer=True)
        except IngotError as error:
            raise RefusalError(400, str(error), "invalid_value", "messages") from None
        top = (body.top_logprobs or 0) if body.logprobs else None
        answer = begin(current, ids, body, body.max_completion_tokens or body.max_tokens, top)

        def told(pieces: list[Piece]) -> dict[str, Any] | None:
            words = [_chat_logprob(current, one) for piece in pieces for one in piece.logprobs]
            return {"content": words, "refusal": None} if body.logprobs else None

        if body.stream:
            frame = base(current, "chatcmpl", "chat.completion.chunk")

            def chunk(piece: Piece | None) -> dict[str, Any]:
                if piece is None:
                    delta: dict[str, Any] = {"role": "assistant", "content": ""}
                    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
                delta = {"content": piece.text} if piece.text or not piece.end else {}
                return {"index": 0, "delta": delta, "logprobs": told([piece]), "finish_reason": piece.end}

            return streamed(current, body, [answer], frame, lambda number, piece: chunk(piece), opening=True)
        [(pieces, text)] = await gathered(call, [answer])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": told(pieces), "finish_reason": pieces[-1].end}
        made = base(current, "chatcmpl", "chat.completion") | {"choices": [choice], "usage": usage(len(ids), answer.tokens)}
        return JSONResponse(made, headers=headers(current))

    @app.post("/v1/completions")
    async def completions(body: Completion, call: Call) -> Any:
        """What follows a text, or each of several."""
        current = loaded(body.model)
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if len(prompts) > limits.texts:
            raise RefusalError(400, f"{len(prompts)} prompts; at most {limits.texts} at once", "invalid_value", "prompt")
        answers: list[Answer] = []
        try:
            for prompt in prompts:
                ids = tokenizer.encode(current.tokenizer, prompt) or [tokenizer.END_OF_TEXT]
                answers.append(begin(current, ids, body, body.max_tokens or 16, body.logprobs))
        except RefusalError:
            for answer in answers:
                answer.wanted.cancel()
            raise

        def choice(number: int, text: str, pieces: list[Piece]) -> dict[str, Any]:
            told = _logprobs(current, pieces) if body.logprobs is not None else None
            return {"index": number, "text": text, "logprobs": told, "finish_reason": pieces[-1].end}

        frame = base(current, "cmpl", "text_completion")
        if body.stream:
            return streamed(
                current, body, answers, frame, lambda number, piece: choice(number, piece.text if piece else "", [piece or Piece("")])
            )
        found = await gathered(call, answers)
        choices = [choice(number, text, pieces) for number, (pieces, text) in enumerate(found)]
        counted = usage(sum(len(answer.wanted.ids) for answer in answers), sum(answer.tokens for answer in answers))
        return JSONResponse(frame | {"choices": choices, "usage": counted}, headers=headers(current))

    @app.post("/v1/embeddings")
    async def embed(body: Embedding) -> JSONResponse:
        """A unit vector a text: the mean of its tokens' states."""
        current = loaded(body.model)
        texts = [body.input] if isinstance(body.input, str) else body.input
        if len(texts) > limits.texts or not all(texts):
            raise RefusalError(400, f"input must be 1 to {limits.texts} texts that are not empty", "invalid_value", "input")
        vectors = await asyncio.to_thread(embeddings, current.model, current.tokenizer, texts)
        coded: list[Any] = vectors.tolist()
        if body.encoding_format == "base64":
            coded = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in coded]
        rows = [{"object": "embedding", "index": number, "embedding": vector} for number, vector in enumerate(coded)]
        count = sum(len(tokenizer.encode(current.tokenizer, text)) for text in texts)
        gauges.prompt.inc(count)
        told = {"object": "list", "data": rows, "model": current.found.name, "usage": {"prompt_tokens": count, "total_tokens": count}}
        return JSONResponse(told, headers=headers(current))

    async def gathered(call: Call, answers: list[Answer]) -> list[tuple[list[Piece], str]]:
        """Pieces and text of each answer; a client that goes away meanwhile cancels them."""

        async def whole(answer: Answer) -> tuple[list[Piece], str]:
            pieces = [piece async for piece in answer.pieces()]
            return pieces, "".join(piece.text for piece in pieces)

        async def gone() -> None:
            while not await call.is_disconnected():
                await asyncio.sleep(0.1)
            for answer in answers:
                answer.wanted.cancel()

        watch = asyncio.create_task(gone())
        try:
            return list(await asyncio.gather(*(whole(answer) for answer in answers)))
        finally:
            watch.cancel()

    def streamed(
        current: Loaded,
        body: Asked,
        answers: list[Answer],
        frame: dict[str, Any],
        choice: Callable[[int, Piece | None], dict[str, Any]],
        opening: bool = False,
    ) -> StreamingResponse:
        async def events() -> AsyncIterator[bytes]:
            def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
                return b"data: " + orjson.dumps(frame | {"choices": choices} | more) + b"\n\n"

            ready: asyncio.Queue[tuple[int, Piece | BaseException]] = asyncio.Queue()

            async def pump(number: int, answer: Answer) -> None:
                try:
                    async for piece in answer.pieces():
                        await ready.put((number, piece))
                except RefusalError as error:
                    await ready.put((number, error))

            pumps = [asyncio.create_task(pump(number, answer)) for number, answer in enumerate(answers)]
            try:
                if opening:
                    yield event([choice(0, None)])
                left = len(answers)
                while left:
                    number, piece = await ready.get()
                    if isinstance(piece, RefusalError):
                        yield b"data: " + orjson.dumps(piece.body) + b"\n\n"
                        return
                    assert isinstance(piece, Piece)
                    left -= piece.end is not None
                    yield event([choice(number, piece)])
                if (body.stream_options or {}).get("include_usage"):
                    counted = usage(sum(len(answer.wanted.ids) for answer in answers), sum(answer.tokens for answer in answers))
                    yield event([], usage=counted)
                yield b"data: [DONE]\n\n"
            finally:
                for answer, task in zip(answers, pumps, strict=True):
                    answer.wanted.cancel()
                    task.cancel()

        return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-cache", **headers(current)})

    return app


class Guard:
    """Before every route: the key, the size of the body, and the count of answers. Plain ASGI, so that streams stay streams."""

    def __init__(self, app: Any, limits: Limits, key: str, gauges: Gauges):
        self.app, self.limits, self.key, self.gauges = app, limits, key.encode(), gauges

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given, status, began = dict(scope["headers"]), [0], [False]

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                status[0], began[0] = message["status"], True
            await send(message)

        async def refuse(status: int, message: str, code: str) -> None:
            await JSONResponse(RefusalError(status, message, code).body, status, {"connection": "close"})(scope, receive, counted)

        try:
            if self.key and scope["path"] not in ("/", "/health") and not self._known(given.get(b"authorization", b"")):
                await refuse(401, "this server wants its key: Authorization: Bearer KEY", "invalid_api_key")
                return
            length = given.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self.limits.body:
                await refuse(413, f"a body of {int(length):,} bytes; at most {self.limits.body:,}", "request_too_large")
                return
            parts, size, more = [], 0, scope["method"] in ("POST", "PUT", "PATCH")
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                parts.append(message.get("body", b""))
                size, more = size + len(parts[-1]), message.get("more_body", False)
                if size > self.limits.body:
                    await refuse(413, f"a body of more than {self.limits.body:,} bytes", "request_too_large")
                    return
            whole = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

            async def again() -> Any:
                return whole.pop() if whole else await receive()

            await self.app(scope, again, counted)
        finally:
            known = scope["path"] in ("/health", "/metrics") or scope["path"].startswith("/v1/")
            if began[0]:
                self.gauges.requests.labels(scope["path"] if known and status[0] != 404 else "other", str(status[0])).inc()

    def _known(self, header: bytes) -> bool:
        kind, _, given = header.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key)


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:  # one write of a line is whole, whoever else writes
        file.write(line)


def _of_engine(serving: Serving, count: str) -> float:
    return float(getattr(serving.current.engine, count, 0))


def _word(current: Loaded, token: int) -> str:
    return current.tokenizer.decode([token], skip_special_tokens=False)


def _chat_logprob(current: Loaded, one: Any) -> dict[str, Any]:
    top = [{"token": _word(current, token), "logprob": value, "bytes": None} for token, value in one.top]
    return {"token": _word(current, one.token), "logprob": one.value, "bytes": None, "top_logprobs": top}


def _logprobs(current: Loaded, pieces: list[Piece]) -> dict[str, Any]:
    found = [one for piece in pieces for one in piece.logprobs]
    words, offsets, at = [_word(current, one.token) for one in found], [], 0
    for word in words:
        offsets.append(at)
        at += len(word)
    top = [{_word(current, token): value for token, value in one.top} for one in found]
    return {"tokens": words, "token_logprobs": [one.value for one in found], "top_logprobs": top, "text_offset": offsets}


def run(
    serving: Serving, limits: Limits, host: str, port: int, key: str, notes: Path | None = None, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or Ctrl-C: then no new connection is taken, and what is under way has 30 s to its end."""
    config = uvicorn.Config(
        application(serving, limits, key, notes), host=host, port=port, log_level="warning", timeout_graceful_shutdown=30
    )
    server = uvicorn.Server(config)
    begin = server.startup

    async def startup(sockets: Any = None) -> None:
        await begin(sockets)
        ready()

    server.startup = startup  # type: ignore[method-assign]
    server.run()
