"""The atlas: layer x head granularity of a model over many images.

``run`` is where to begin: ``read`` looks at an image, ``build`` at all, ``store`` keeps them, ``judge`` makes claims.
"""
