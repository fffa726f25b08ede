"""The rules: each is a value with a one-line form, and judges what is on record."""
