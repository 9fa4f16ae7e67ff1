"""Interoperability with diffusers: IP-Adapter files, and stock pipelines."""
