"""How good generated defects are, and whether they make a detector better.

Plain functions over folders; features of images come in as callables. Ray and the choice of
networks are the commands' (`launch.evaluate`).
"""
