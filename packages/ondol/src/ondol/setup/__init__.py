"""`ml init`, `ml contract` and `ml tidy`: the contract from a table, its changes, and files that updates left behind.

`initialize` is the command `ml init`: `inference` guesses roles and types, `schema_file` writes `model/schema.py`.
`evolution` finds changes of the table, `schema_edit` makes them in the file.
"""
