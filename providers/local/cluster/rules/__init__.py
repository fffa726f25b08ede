"""The rules of writing: defaults, validation, admission."""
