"""The built-in data set: product photographs drawn by a program, with labelled defects."""
