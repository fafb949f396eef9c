"""LangChain's cache interface, with the real library where it is installed."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import pytest
from durable_agents.errors import InvalidSetting
from durable_agents.once.langchain_cache import LangChainCache
from durable_agents.once.llm_cache import LLMOutputCache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(name="cache")
def _cache(tmp_path: Path) -> Iterator[LLMOutputCache]:
    with LLMOutputCache(db_path=tmp_path / "s.db") as cache:
        yield cache


def test_a_model_of_the_library_generates_once(cache: LLMOutputCache) -> None:
    """A chat model and a text model get the stored generation the second time,
    and another prompt another one.
    """
    models: Any = pytest.importorskip("langchain_core.language_models")
    below = LangChainCache(cache)
    for kind in (models.FakeListChatModel, models.FakeListLLM):
        model = kind(responses=["first", "second", "third"], cache=below)
        said = [getattr(it, "content", it) for it in (model.invoke(text) for text in ("a", "a", "b", "a"))]
        assert said == ["first", "first", "second", "first"]
    found = cache.statistics()
    assert (found.hits, found.misses) == (4, 4)


def test_generations_come_back_as_they_were(cache: LLMOutputCache) -> None:
    """Their text, message, metadata and number of tokens; asynchronously too;
    and none after a clear.
    """
    outputs: Any = pytest.importorskip("langchain_core.outputs")
    messages: Any = pytest.importorskip("langchain_core.messages")
    below = LangChainCache(cache)
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    message = messages.AIMessage("said", usage_metadata=usage, response_metadata={"model": "m"})
    generations = [outputs.ChatGeneration(message=message, generation_info={"finish_reason": "stop"})]
    assert asyncio.run(below.alookup("prompt", "model")) is None
    asyncio.run(below.aupdate("prompt", "model", generations))
    assert asyncio.run(below.alookup("prompt", "model")) == generations
    assert below.lookup("prompt", "another model") is None
    assert cache.statistics().tokens_saved == 7
    asyncio.run(below.aclear())
    assert below.lookup("prompt", "model") is None


def test_without_the_library_the_error_says_what_to_install(
    cache: LLMOutputCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else of the core needs it."""
    monkeypatch.setitem(sys.modules, "langchain_core.caches", None)
    with pytest.raises(InvalidSetting, match="install langchain-core"):
        LangChainCache(cache)
