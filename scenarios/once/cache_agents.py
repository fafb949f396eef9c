"""The programs of the scenario about the cache: each generation is a line in a file."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from durable_agents import CachedOutput, Generation, LLMOutputCache

from scenarios.work.agents import made

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_chaos import Marks

TOKENS = 100
POLL_S = 0.0005


@contextlib.contextmanager
def opened(cache: str, database: str) -> Iterator[LLMOutputCache]:
    """Open the cache of this name, sound or planted."""
    part: LLMOutputCache = made(cache, db_path=database)
    with part:
        yield part


def ask_all(marks: Marks, database: str, cache: str, prompts: list[int], effects: str) -> None:
    """Ask for each prompt once, and write all answers as one mark.

    A mark for each answer would dominate the time.
    """
    hits, wrong = 0, []
    with opened(cache, database) as part:
        marks.intent("pass")
        for prompt in prompts:
            answer = ask(part, prompt, effects)
            hits += answer.is_hit
            if answer.output != output_of(prompt):
                wrong.append(prompt)
    marks.ack("pass", value={"hits": hits, "misses": len(prompts) - hits, "wrong": wrong})


def ask_each(marks: Marks, database: str, cache: str, prompts: list[int], effects: str) -> None:
    """Ask for each prompt, with marks before and after each generation and each answer."""
    with opened(cache, database) as part:
        for prompt in prompts:

            def generate(prompt: int = prompt) -> Generation:
                marks.intent("generate", prompt)
                return generated(prompt, effects)

            marks.intent("ask", prompt)
            answer = part.get_or_generate(generate, **request_of(prompt))
            marks.ack("ask", prompt, value={"right": answer.output == output_of(prompt), "hit": answer.is_hit})


def ask_at_once(
    marks: Marks, database: str, cache: str, prompts: list[int], effects: str, gate: str, hold: str, ttl_s: float
) -> None:
    """Ask when the gate is open; a generator goes on when the file ``hold`` is there.

    So the other callers have to wait for it.
    """
    with opened(cache, database) as part:
        marks.note("ready")
        wait_for(gate)
        for prompt in prompts:

            def generate(prompt: int = prompt) -> Generation:
                generation = generated(prompt, effects)
                marks.note("generating", prompt)
                wait_for(hold)
                marks.note("released", prompt)
                return generation

            marks.intent("ask", prompt)
            answer = part.get_or_generate(generate, ttl_s=ttl_s, **request_of(prompt))
            marks.ack("ask", prompt, value={"right": answer.output == output_of(prompt), "hit": answer.is_hit})


def ask(part: LLMOutputCache, prompt: int, effects: str) -> CachedOutput:
    """Ask for one prompt."""
    return part.get_or_generate(lambda: generated(prompt, effects), **request_of(prompt))


def request_of(prompt: int) -> dict[str, Any]:
    """Return the request for a prompt; two neighbours differ in one parameter alone."""
    messages = [{"role": "user", "content": f"question {prompt // 2}"}]
    return {"model": "model", "messages": messages, "parameters": {"temperature": prompt % 2, "top_p": 1}}


def output_of(prompt: int) -> dict[str, Any]:
    """Return the one right answer to a request."""
    return {"role": "assistant", "content": f"answer {prompt} " * 100}


def generated(prompt: int, effects: str) -> Generation:
    """Generate an answer, and append a line to the world's file.

    The line is one write, which no kill can tear.
    """
    descriptor = os.open(effects, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{prompt}\n".encode())
    os.close(descriptor)
    return Generation(output_of(prompt), TOKENS)


def wait_for(path: str) -> None:
    """Wait until the file exists; without a path, do not wait."""
    while path and not Path(path).exists():
        time.sleep(POLL_S)  # sleeps because it waits for the gate; the run bounds it
