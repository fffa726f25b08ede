"""The history of a model: who gave which version an alias or a stage, why, and what was there before."""
