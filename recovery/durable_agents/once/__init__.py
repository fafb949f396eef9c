"""Executing once: idempotency keys, the cache of language-model outputs, and the tool ledger.

All three keep results by key and scope, in one table of the store. A result that was returned is
flushed, and is what every later caller gets until it expires.

The flow of a request:

1. A *hit* is one read (``KeyClaims.recorded``), and counts in memory (``hit_counters``).
2. On a miss, ``claims`` commits a claim on the key: of all processes that ask, one executes. The
   others wait, with a bound. The kernel tells at once when an executor dies (``owner_lock``).
3. The executor produces the result, and ends its claim with it in one transaction.

| module | for | if the executor dies |
|---|---|---|
| ``idempotency`` | functions that are safe to repeat | another caller executes again |
| ``llm_cache``, ``langchain_cache`` | outputs of language models | another caller generates again |
| ``tool_ledger``, ``outputs`` | effects on the world | the call is in doubt; its caller decides |

``requests`` gives requests their hash. The store is the only code that knows SQL. Users import the
classes from ``durable_agents``; no other room imports from this one.
"""
