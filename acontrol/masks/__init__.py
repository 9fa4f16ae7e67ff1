"""Where a defect may go: masks from training masks, noise, a trained model or the user."""
