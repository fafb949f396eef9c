"""Caches of language-model outputs with one known bug each.

| variant | bug | seen by |
|---|---|---|
| ChecksThenInserts | looks, generates, and stores in steps of their own (D2) | a stampede |
| NeverRefreshes | an expired output is a miss for ever (D7) | an expiry under load |
| KeepsTheDead | a killed generator keeps its key until its claim expires | callers that are killed |
| ForgetsParameters | the parameters are not in the key | two requests that differ in a parameter |
| ForgetsTheModel | the model is not in the key | two requests that differ in the model |
| LosesCounts | what waits in memory is dropped when the cache closes | the statistics of two passes |
"""

from __future__ import annotations

from typing import Any, ClassVar

from durable_agents import IdempotencyStore, LLMOutputCache
from durable_agents.once.requests import request_hash

from tests.planted.once import idempotency


class _OnPlanted(LLMOutputCache):
    """A cache on an idempotency store with a bug."""

    keys_kind: ClassVar[type[IdempotencyStore]] = IdempotencyStore

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        """Put the variant in the place of the sound store: it has the same attributes."""
        super().__init__(*arguments, **keywords)
        self._keys.__class__ = self.keys_kind


class ChecksThenInserts(_OnPlanted):
    """Generates as often as somebody looks before the first one has stored."""

    keys_kind = idempotency.ChecksThenInserts


class NeverRefreshes(_OnPlanted):
    """Generates an expired output again and again."""

    keys_kind = idempotency.NeverRefreshes


class KeepsTheDead(_OnPlanted):
    """Does not take over from a generator that is known to be dead."""

    keys_kind = idempotency.KeepsTheDead


class ForgetsParameters(LLMOutputCache):
    """Answers with what was generated at another temperature."""

    @staticmethod
    def key(model: str, messages: object, parameters: object = None, operation: str = "generate") -> str:
        """Leave the parameters out."""
        assert parameters is not Ellipsis
        return request_hash([operation, model, messages])


class LosesCounts(LLMOutputCache):
    """Never adds up what it counted."""

    def close(self) -> None:
        """Drop what waits."""
        self._counters.forget()
        super().close()


class ForgetsTheModel(LLMOutputCache):
    """Answers with what another model has generated."""

    @staticmethod
    def key(model: str, messages: object, parameters: object = None, operation: str = "generate") -> str:
        """Leave the model out."""
        del model
        return request_hash([operation, messages, parameters])
