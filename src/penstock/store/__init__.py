"""The cache, the build folder and scratch folders: the only package that writes files.

Writes are atomic (a temporary file in the same folder, then a rename), so a killed process leaves no half file.
Cache entries are whole folders with a manifest of digests, checked at every read: a damaged one is dropped and redone.
Two processes may share a cache: whoever renames second finds the entry there and drops its own copy.
"""

from penstock.store.build_folder import BuildFolder
from penstock.store.cache import IN_USE_S, LEFTOVER_S, Cache, CacheEntry, Kept, Made
from penstock.store.files import (
    OwnFile,
    append_line,
    copy_file,
    copy_plain,
    default_cache,
    digest_of,
    drop_folder,
    explained,
    file_digest,
    list_files,
    locked,
    move_file,
    nameless,
    replacing,
    resuming,
    scratch,
    scratch_home,
    write_bytes,
    write_json,
)

__all__ = [
    "IN_USE_S", "LEFTOVER_S", "BuildFolder", "Cache", "CacheEntry", "Kept", "Made", "OwnFile", "append_line",
    "copy_file", "copy_plain", "default_cache", "digest_of", "drop_folder", "explained", "file_digest", "list_files",
    "locked", "move_file", "nameless", "replacing", "resuming", "scratch", "scratch_home", "write_bytes", "write_json",
]  # fmt: skip
