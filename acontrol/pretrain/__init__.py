"""Training a base from nothing: autoencoder, text-to-image U-Net, and a BLIP-2.

For those who cannot or will not download Stable Diffusion: the built-in tiny base is made by
this, and a team can make one from its own good and defective images.
"""
