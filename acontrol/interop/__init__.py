"""At home in the diffusers world: IP-Adapter files in and out, and stock pipelines."""
