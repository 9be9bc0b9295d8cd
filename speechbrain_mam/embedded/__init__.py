"""The models and corpora behind the package's defaults, and the scripts that made them.

``corpora`` finds what ships with the package, ``grammar`` and ``synthesise`` make its text and its
speech, and ``train_hubert_mini`` trains HuBERT-mini. The scripts need speech engines and training
data; users of the package never run them.
"""
