"""Source rules: what they say, and editing a text by them; in memory, too."""
