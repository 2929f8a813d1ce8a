"""`ml init`, `ml contract`, `ml client` and `ml tidy`: what is written from data and contract, or left by updates.

`initialize` is the command `ml init`: `inference` guesses roles and types, `schema_file` writes `model/schema.py`.
`evolution` finds changes of the table, `schema_edit` applies them to the file. `client` writes a typed client of the
service, whose code is `client_code`.
"""
