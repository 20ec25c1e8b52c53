"""A model with its card goes to the hub."""
