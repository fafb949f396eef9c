"""The commands that narrow a violation down: ``chaos shrink | explain | bisect``."""
