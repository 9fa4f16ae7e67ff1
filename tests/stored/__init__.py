"""Small files of each form that a release wrote, read by every later version."""
