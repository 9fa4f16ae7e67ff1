"""Masks for new defects: from training masks, noise, a trained model or the user."""
