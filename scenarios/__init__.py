"""What we claim survives: tests that read like a list of promises,
and the agents that they start.
"""
