"""Following objects through clips: prompts and frames in, tracks out.

``segmenter`` is where to begin; ``tracking`` takes one clip on its way, ``resume`` keeps what was done.
"""
