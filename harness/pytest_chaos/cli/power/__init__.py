"""The power of a suite: ``chaos mutate`` removes guards, ``chaos doubt`` lays patches over it."""
