"""A page to draw on: paint where, pick a reference, look, keep what is good."""
