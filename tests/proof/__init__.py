"""SpeechBrain's own recipes with MAM's lines: the table of them, and what runs them."""
