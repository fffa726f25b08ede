"""Names, identities, time-outs, and access to objects as the API gives them."""
