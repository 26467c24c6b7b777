"""Sampling from a server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, TGI, a vendor).

A response is one request to ``/chat/completions`` with its own seed.  The requests live on an event loop in a thread of
its own: grading never holds them up, and Ctrl-C cancels them at once.

What servers do wrong has one of three ends.  Busy or broken for a moment (429, 408, 409, 5xx, a broken connection):
asked again, after what Retry-After says or ever longer waits.  An answer that is none (no JSON, no text, refused for
this problem, later than ``timeout_s``): the problem is a counted failure, asked again when the evaluation goes on.
Nothing but failures, a refused key, a model that is not there: the evaluation ends and says so; what is complete stays.

The key comes from the environment, goes into one header, and is taken out of whatever a server says.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from workers.rollout.generation import SamplingParams

if TYPE_CHECKING:
    import httpx
    from omegaconf import DictConfig

ENGINE, KIND = "openai", "server"
KEY = "OPENAI_API_KEY"  # of the environment
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
FATAL = frozenset({401, 403, 404})  # wrong for every problem alike
MOST_BYTES = 64 * 2**20  # of one answer; a response of 38,912 tokens has 0.2 MiB
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
QUIET_S = 30.0  # without any answer, after which the console says so

Task = TypeVar("Task")
Found = TypeVar("Found")
Answer = tuple[str, int, str]  # text, tokens, "completed" or "length"


class ServerError(RuntimeError):
    """The server cannot be used; what it answered before stands."""


class NoAnswer(RuntimeError):
    """A request ended without an answer; says why."""


@dataclass(frozen=True)
class ServerOptions:
    """Where the server is and how it is asked.

    Attributes:
        base_url: its address, without a slash at the end.
        concurrency: requests open at a time.
        timeout_s: of one response, and the longest wait that the server may ask for; seconds.
        retries: of a request that may succeed later.
        give_up_after: problems without an answer, one after the other, that end the evaluation.
    """

    base_url: str
    concurrency: int = 32
    timeout_s: float = 600.0
    retries: int = 6
    give_up_after: int = 8

    @classmethod
    def of(cls, cfg: DictConfig) -> ServerOptions:
        """Read them from a configuration.

        Args:
            cfg: of an evaluation; `option_problems` says what is wrong with it.

        Returns:
            The options, unchecked.
        """
        return cls(str(cfg.base_url or "").rstrip("/"), **dict(cfg.server))


@dataclass(frozen=True)
class Failed:
    """A problem without an answer, in place of its answers.

    Attributes:
        reason: one line, without the key.
    """

    reason: str


def option_problems(options: ServerOptions) -> Iterator[str]:
    """Check the options; connects to nothing.

    Args:
        options: as they were given.

    Yields:
        A sentence for each that is wrong.
    """
    if not options.base_url:
        yield f"engine={ENGINE} needs base_url=, such as base_url=http://localhost:8000/v1"
        return
    try:
        parts = urlsplit(options.base_url)
        secret = parts.username or parts.password or parts.query or parts.fragment
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        secret, sound = None, False
    if secret:
        yield f"base_url= carries a name, a key or a query: give only the address, and the key in {KEY}"
    elif not sound:
        yield f"base_url={options.base_url}: must be an address such as http://localhost:8000/v1"
    for name, least in (("concurrency", 1), ("retries", 0), ("give_up_after", 1)):
        value = getattr(options, name)
        if not isinstance(value, int) or value < least:
            yield f"server.{name}={value}: must be a whole number of at least {least}"
    if not options.timeout_s > 0:
        yield f"server.timeout_s={options.timeout_s}: must be above 0"


def model_problems(options: ServerOptions, names: Sequence[str]) -> Iterator[str]:
    """Ask a server once, for its list of models, whether it is there and serves some.

    Args:
        options: sound ones.
        names: of the models.

    Yields:
        A sentence for each that is not served, or one if the server cannot be asked.
    """

    async def listed() -> Any:
        quick = ServerOptions(options.base_url, 1, min(options.timeout_s, 30.0), min(options.retries, 1), 1)
        async with _Client(quick) as client:
            return await client.ask("GET", "/models", None)

    try:
        answer = asyncio.run(listed())
        served = [str(model["id"]) for model in answer["data"]]
    except ServerError as error:
        if "status 404" not in str(error):  # not every server has a list
            yield str(error)
        return
    except NoAnswer as error:
        yield f"{options.base_url}: {error}; is it a server of OpenAI's protocol, and is it running?"
        return
    except (TypeError, KeyError):
        yield f"{options.base_url}/models answers without a list of models; is it a server of OpenAI's protocol?"
        return
    for name in names:
        if name not in served:
            shown = ", ".join(_printable(model) for model in served[:8])
            yield f"model={name}: {options.base_url} serves {shown or 'nothing'}; name one of these"


def sample_from_server(
    options: ServerOptions,
    model: str,
    params: SamplingParams,
    template_kwargs: dict[str, Any],
    tasks: Iterable[tuple[Task, tuple[list[dict[str, str]], list[int]]]],
    quiet: Callable[[float, int], None] = lambda seconds, requests: None,
) -> Generator[tuple[Task, list[Answer] | Failed], None, None]:
    """Ask for every problem's responses.

    Args:
        options: where and how.
        model: its name at the server.
        params: of sampling.
        template_kwargs: arguments of the server's chat template.
        tasks: (task, (chat, a seed for each response)).
        quiet: called with the seconds without any answer and the number of open requests, each `QUIET_S` seconds.

    Yields:
        (task, its answers or why there are none), as problems are complete or have failed.

    Raises:
        ServerError: if the server cannot be used.
    """
    results: queue.Queue[Any] = queue.Queue()
    client = _Client(options)

    def serve() -> None:
        try:
            asyncio.run(_serve(client, model, params, template_kwargs, tasks, results))
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # whatever it is, it is for the caller to see
            results.put(error)

    thread = threading.Thread(target=serve, name="server", daemon=True)
    thread.start()
    in_a_row = 0
    try:
        while True:
            try:
                item = results.get(timeout=QUIET_S)
            except queue.Empty:
                quiet(time.monotonic() - client.last_answer, client.open)
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            _, found = item
            in_a_row = in_a_row + 1 if isinstance(found, Failed) else 0
            yield item
            if in_a_row >= options.give_up_after:
                raise ServerError(f"{options.base_url} gave no answer to {in_a_row} problems in a row; the last: "
                                  f"{found.reason}")  # fmt: skip
    finally:
        client.cancel()
        thread.join(timeout=10)


async def _serve(
    client: _Client,
    model: str,
    params: SamplingParams,
    template_kwargs: dict[str, Any],
    tasks: Iterable[tuple[Any, tuple[list[dict[str, str]], list[int]]]],
    results: queue.Queue[Any],
) -> None:
    """Keep ``concurrency`` requests open until every task is in ``results``; then None."""
    client.loop, client.running = asyncio.get_running_loop(), asyncio.current_task()
    waiting = iter(tasks)

    async def problems() -> None:
        for task, (messages, seeds) in waiting:
            bodies = [_body(model, params, template_kwargs, messages, seed) for seed in seeds]
            try:
                results.put((task, await _together([client.complete(body) for body in bodies])))
            except NoAnswer as error:
                results.put((task, Failed(str(error))))

    if not client.cancelled:
        async with client:
            # As many problems at a time as keep the requests open with a single response each.
            await _together([problems() for _ in range(client.options.concurrency)])
    results.put(None)


async def _together(work: Sequence[Coroutine[Any, Any, Found]]) -> list[Found]:
    """The results of all; the first failure ends the others and is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _body(
    model: str, params: SamplingParams, template_kwargs: dict[str, Any], messages: list[dict[str, str]], seed: int
) -> dict[str, Any]:
    """A request; what only some servers know (top_k, arguments of the chat template) is there only where it is set."""
    return {
        "model": model,
        "messages": messages,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "max_tokens": params.max_tokens,
        "seed": seed % 2**31,  # some servers keep it in 32 bits
        **({"top_k": params.top_k} if params.top_k > 0 else {}),
        **({"chat_template_kwargs": template_kwargs} if template_kwargs else {}),
    }


class _Client:
    """Requests to one server: at most ``concurrency`` open, again where that may help, never longer than allowed."""

    def __init__(self, options: ServerOptions):
        self.options = options
        self.key = os.environ.get(KEY, "").strip()
        self.open = 0
        self.last_answer = time.monotonic()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.running: asyncio.Task | None = None
        self.cancelled = False
        self._not_before = 0.0  # a server that is busy for one request is busy for all
        self._random = random.Random(0)

    async def __aenter__(self) -> _Client:
        import httpx

        self._places = asyncio.Semaphore(self.options.concurrency)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        limits = httpx.Limits(max_connections=self.options.concurrency + 1)
        self._http = httpx.AsyncClient(headers=headers, limits=limits, timeout=httpx.Timeout(None, connect=30.0))
        self.last_answer = time.monotonic()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    def cancel(self) -> None:
        """End all requests; from any thread."""
        self.cancelled = True
        if self.loop is not None and self.running is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is open
                self.loop.call_soon_threadsafe(self.running.cancel)

    async def complete(self, body: dict[str, Any]) -> Answer:
        """The answer to one request of a response.  Raises NoAnswer and ServerError."""
        async with self._places:
            return _answer(await self.ask("POST", "/chat/completions", body), self._clean)

    async def ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """The JSON of an answer.  Raises NoAnswer and ServerError."""
        why = ""
        for attempt in range(self.options.retries + 1):
            await asyncio.sleep(max(0.0, self._not_before - time.monotonic()))
            self.open += 1
            try:
                sent = self._send(method, path, body)
                status, headers, content = await asyncio.wait_for(sent, self.options.timeout_s)
            except asyncio.TimeoutError:
                raise self._late() from None
            except _broken() as error:
                why = f"the connection failed ({type(error).__name__}: {self._clean(str(error))})"
                wait = self._backoff(attempt)
            else:
                self.last_answer = time.monotonic()
                if status == 200:
                    return self._json(content)
                why = f"status {status}: {self._said(content)}"
                if status in FATAL:
                    advice = {401: f"set {KEY}", 403: f"set {KEY}", 404: "check base_url= and model="}[status]
                    raise ServerError(f"{self.options.base_url}{path} answers with {why}; {advice}")
                if status not in AGAIN:
                    raise NoAnswer(why)
                wait = self._wait(headers.get("retry-after"), attempt)
            finally:
                self.open -= 1
            if attempt < self.options.retries:
                self._not_before = max(self._not_before, time.monotonic() + wait)
        raise NoAnswer(f"{why}; asked {self.options.retries + 1} times")

    def _late(self) -> Exception:
        silent = time.monotonic() - self.last_answer
        if silent < self.options.timeout_s:
            return NoAnswer(f"no answer within server.timeout_s={self.options.timeout_s:g} s")
        return ServerError(
            f"{self.options.base_url} has stalled: nothing for {silent:.0f} s to any of {self.open} open requests "
            f"(server.timeout_s={self.options.timeout_s:g})"
        )

    async def _send(self, method: str, path: str, body: Any) -> tuple[int, httpx.Headers, bytes]:
        async with self._http.stream(method, self.options.base_url + path, json=body) as response:
            content = bytearray()
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise NoAnswer(f"an answer of more than {MOST_BYTES // 2**20} MiB")
            return response.status_code, response.headers, bytes(content)

    def _backoff(self, attempt: int) -> float:
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**attempt) * self._random.uniform(0.75, 1.25)

    def _wait(self, retry_after: str | None, attempt: int) -> float:
        """Seconds to wait, as the server says (a number or a date), else ever longer."""
        if retry_after is None:
            return self._backoff(attempt)
        try:
            seconds = float(retry_after)
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
            except (ValueError, TypeError):
                return self._backoff(attempt)
        if not seconds <= self.options.timeout_s:
            raise ServerError(
                f"{self.options.base_url} asks to wait {seconds:.0f} s (Retry-After), longer than "
                f"server.timeout_s={self.options.timeout_s:g}: go on later, or raise it"
            )
        return max(0.0, seconds)

    def _json(self, content: bytes) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            raise NoAnswer(f"an answer that is no JSON: {self._said(content)}") from None

    def _said(self, content: bytes) -> str:
        """The start of what a server says, fit for a line and without the key."""
        return self._clean(content[:4000].decode("utf-8", "replace")) or "nothing"

    def _clean(self, text: str) -> str:
        return _printable(text.replace(self.key, "***") if self.key else text)


def _broken() -> tuple[type[Exception], ...]:
    import httpx

    return (httpx.TransportError, httpx.DecodingError)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:200].strip()


def _answer(reply: Any, clean: Any) -> Answer:
    """Text, tokens and stop of a chat completion; its thoughts, where the server keeps them apart, come first.

    Raises:
        NoAnswer: it is none.
    """
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        text, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
        tokens, stop = reply["usage"]["completion_tokens"], choice.get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        raise NoAnswer(f"an answer without choices, message or usage: {clean(json.dumps(reply))}") from None
    if not (isinstance(text, str | None) and isinstance(thoughts, str | None) and type(tokens) is int and tokens >= 0):
        raise NoAnswer(f"an answer whose content or usage is of another type: {clean(json.dumps(reply))}")
    whole = f"<think>\n{thoughts}\n</think>\n\n{text or ''}" if thoughts else text or ""
    if thoughts and not text and stop == "length":
        whole = f"<think>\n{thoughts}"  # cut while it thought
    return whole, tokens, "length" if stop == "length" else "completed"
