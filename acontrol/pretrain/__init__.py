"""Pretraining a base, from scratch or another: autoencoder, text-to-image U-Net and BLIP-2.

For those who cannot or will not download Stable Diffusion. The built-in tiny base was trained
with it, and a team can train one on its own good and defective images.
"""
