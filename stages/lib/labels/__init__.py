"""From labels to pairs: who is heard, what they agree on, and how good each of them is."""
