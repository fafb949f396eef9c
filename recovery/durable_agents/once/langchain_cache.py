"""The LLM output cache as LangChain's ``langchain_core.caches.BaseCache`` (optional).

    from langchain_core.globals import set_llm_cache
    set_llm_cache(LangChainCache(LLMOutputCache(db_path="outputs.db")))

LangChain looks up and stores in two calls. So of several processes that miss at once each one
generates, and the first that stores wins. ``LLMOutputCache.get_or_generate`` generates once.

The class does not inherit from LangChain's, which may not be installed, but is registered as a
subclass when it is made. Stored values are LangChain's own serial form; only messages and
generations are ever made from it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import warnings
from typing import TYPE_CHECKING, Any, Final

from durable_agents.errors import InvalidSetting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from durable_agents.once.llm_cache import LLMOutputCache

_OPERATION: Final = "langchain"


class LangChainCache:
    """LangChain's cache in an ``LLMOutputCache``, which the caller closes.

    Raises InvalidSetting unless langchain-core is installed.
    """

    def __init__(self, cache: LLMOutputCache) -> None:
        """Use the cache."""
        self._cache = cache
        _module("langchain_core.caches").BaseCache.register(type(self))

    def lookup(self, prompt: str, llm_string: str) -> list[Any] | None:
        """Return the generations for a prompt and a model with its parameters, or None.

        Raises any StoreError.
        """
        found = self._cache.get(self._key(prompt, llm_string))
        return None if found is None else [_revived(item) for item in found.output]

    def update(self, prompt: str, llm_string: str, return_val: Sequence[Any]) -> None:
        """Keep the generations for a prompt and a model.

        Raises InvalidResult, or any StoreError.
        """
        tokens = sum(_tokens(generation) for generation in return_val)
        self._cache.put(self._key(prompt, llm_string), [_dumped(item) for item in return_val], tokens=tokens)

    def clear(self, **_: Any) -> None:
        """Delete all outputs of the cache below."""
        self._cache.clear()

    async def alookup(self, prompt: str, llm_string: str) -> list[Any] | None:
        """Look up in a thread."""
        return await asyncio.to_thread(self.lookup, prompt, llm_string)

    async def aupdate(self, prompt: str, llm_string: str, return_val: Sequence[Any]) -> None:
        """Store in a thread."""
        await asyncio.to_thread(self.update, prompt, llm_string, return_val)

    async def aclear(self, **_: Any) -> None:
        """Clear in a thread."""
        await asyncio.to_thread(self.clear)

    def _key(self, prompt: str, llm_string: str) -> str:
        return self._cache.key(llm_string, prompt, operation=_OPERATION)


def _dumped(generation: Any) -> Any:
    """Return a generation as JSON: LangChain's serial form, decoded."""
    return json.loads(_module("langchain_core.load").dumps(generation))


def _revived(stored: Any) -> Any:
    """Return the generation that was dumped.

    Only messages and generations are made, whatever class the text names.
    """
    load, outputs = _module("langchain_core.load"), _module("langchain_core.outputs")
    messages = _module("langchain_core.messages")
    allowed = [outputs.Generation, outputs.ChatGeneration, messages.AIMessage, messages.AIMessageChunk]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _module("langchain_core._api").LangChainBetaWarning)
        return load.load(stored, allowed_objects=allowed)


def _tokens(generation: Any) -> int:
    """Return the token count that a generation reports, or 0."""
    usage = getattr(getattr(generation, "message", None), "usage_metadata", None) or {}
    tokens = usage.get("total_tokens", 0)
    return tokens if isinstance(tokens, int) and tokens > 0 else 0


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"{name} must be importable; got '{error}'. To use it, install langchain-core."
        raise InvalidSetting(message) from error
