"""The change feed: one poll of the registry for all who wait for it, and what each of them is told."""
