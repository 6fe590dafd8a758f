"""Who ranks completions, one file a kind of labeler: a class of its knobs, and `rank`."""
