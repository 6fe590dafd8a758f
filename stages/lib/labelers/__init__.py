"""Who ranks completions, one file a kind of labeler: a class of its knobs, and `rank`.

`rank` returns the rankings, and metrics of its own beside those that every labeler has.
"""
