"""Other ways of drawing a defect, one module each, on the same plan, gate and report as ours.

They know no plan and no file but the reference's: `acontrol.generation` gives them tasks.
"""
