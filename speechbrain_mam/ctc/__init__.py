"""Labels and decoding of a CTC head: SentencePiece's pieces, beam search, n-gram language models.

It may import lobes, model_files, embedded and what they may import.
"""
