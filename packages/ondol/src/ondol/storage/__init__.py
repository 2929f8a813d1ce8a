"""Storage: files, the store, locks and files at addresses; nothing here knows of models.

A project's records and large files are in its `Store`, a folder or the mirror of a remote store; the project's lock is
beside it (`store`). What is written whole or not at all is in `files`; data of users at an address or in a bucket is
opened by `remote_files`.
"""
