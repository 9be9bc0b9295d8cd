"""Where the query, key and value of each family of models are: the table, and what is found by it.

It may import errors.
"""
