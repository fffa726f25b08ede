"""How an attempt stands, and how it ended."""
