"""Campaigns that decide: when a rate is proved, what drifts, which shard has a run. Pure.

sequential  proof or refutation of a pass rate, valid at whatever run one looks
drift       whether time, memory, files or processes grow from run to run
shards      which part of a campaign has a run, and runs that two sessions share
"""
