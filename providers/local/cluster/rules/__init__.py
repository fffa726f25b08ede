"""What may be written: defaults, validation, admission."""
