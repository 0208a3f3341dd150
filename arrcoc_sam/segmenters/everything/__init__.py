"""The automatic mode: all masks of an image, from a grid of clicks, without a prompt.

``generator`` is where to begin; ``candidates`` judges what the decoder answers, ``masks`` is what comes out.
"""
