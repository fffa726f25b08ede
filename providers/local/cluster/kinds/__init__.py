"""Special to a kind of object: its schema, and what follows from its fields."""
