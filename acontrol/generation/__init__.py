"""Draw labelled data sets: plan.py decides every image, draw.py draws and writes them."""
