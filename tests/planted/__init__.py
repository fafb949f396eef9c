"""Planted defects: each module has variants of a part of the core with one known bug each,
for scenarios to catch.

Every variant has the interface of what it varies and passes the same crash points, so the same plan
runs on both.
"""
