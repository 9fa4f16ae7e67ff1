"""Generate labelled data sets: plan.py decides every image, sampler.py draws them."""
