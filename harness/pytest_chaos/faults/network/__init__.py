"""Faults of the network. The connections themselves are disturbed by ``network``.

``links.py``  what a link, a TCP proxy of ours, does to connections, with the function that plans it
``partitions.py``  agents that do not reach each other, or an address; likewise
``streams.py``  what agents meet that call LLM APIs: streams cut or slow, storms of 429, broken JSON
"""
