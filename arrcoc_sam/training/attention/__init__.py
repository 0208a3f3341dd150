"""Training of attention.

``model`` is what learns, ``feed`` what it is shown, ``trainer`` the run, ``evaluation`` the judge.
"""
