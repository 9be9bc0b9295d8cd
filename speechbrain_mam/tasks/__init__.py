"""Speech recognition and audio events: a Brain for each, their manifests, their recordings.

It may import brain, search, lobes and what they may import.
"""
