"""`ml init`, `ml contract` and `ml tidy`: drafts and updates the contract, and deletes files that updates left.

`initialize` is the command `ml init`: `inference` guesses roles and types, `schema_file` writes `model/schema.py`.
`evolution` finds changes of the table, `schema_edit` applies them to the file.
"""
