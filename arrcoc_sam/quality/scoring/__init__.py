"""Data sets of masks scored: ``scorer`` turns a table of masks into one of scores, ``run`` survives being killed."""
