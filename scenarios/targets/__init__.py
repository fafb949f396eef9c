"""What scenario 17 explores: programs whose outcome is known beforehand,
and the recovery core's own checkpoints.

databases    SQLite in six configurations
files        a JSON file, saved in four ways
habits       what has lost data in programs that many use, each beside what mends it
compiled     a program in C, linked dynamically or statically
checkpoints  ``recovery.CheckpointManager``
"""
