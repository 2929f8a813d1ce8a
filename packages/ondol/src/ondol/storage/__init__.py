"""Storage: files, the store, locks and files at addresses; nothing here depends on models.

`store` has the `Store` of a project's records and large files, a folder or the mirror of a remote store, and the
project's lock. `files` writes files atomically. `remote_files` opens data of users at an address or in a bucket.
"""
