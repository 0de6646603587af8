"""What every artefact on disk shares: atomic writes, array files, manifests and fingerprints.

A file is written beside its final name, flushed to disk and renamed, so a reader (or a run resumed after ``kill -9``)
sees it whole or not at all. Arrays and weights live in safetensors, manifests in JSON; nothing is pickled.
"""

from comove.checks import as_array, as_ids
from comove.store.arrays import (
    StoredArray,
    check_file,
    open_array,
    read_arrays,
    read_bytes,
    read_checked,
    read_header,
    sealed,
    write_arrays,
    write_checked,
    write_sealed,
)
from comove.store.documents import entries, parse_json, read_json, understanding, write_json
from comove.store.files import (
    DAMAGED,
    TEMPORARY,
    is_empty,
    lives,
    new_folder,
    readable,
    remove_leftovers,
    set_aside,
    slug,
    write_bytes,
)
from comove.store.manifests import (
    MANIFEST,
    check_fingerprint,
    check_kind,
    claim_cache,
    claim_folder,
    command_line,
    continue_folder,
    digest,
    open_manifest,
    versions,
    write_manifest,
)
from comove.store.rows import LazyRows

__all__ = [
    "DAMAGED",
    "MANIFEST",
    "TEMPORARY",
    "LazyRows",
    "StoredArray",
    "as_array",
    "as_ids",
    "check_file",
    "check_fingerprint",
    "check_kind",
    "claim_cache",
    "claim_folder",
    "command_line",
    "continue_folder",
    "digest",
    "entries",
    "is_empty",
    "lives",
    "new_folder",
    "open_array",
    "open_manifest",
    "parse_json",
    "read_arrays",
    "read_bytes",
    "read_checked",
    "read_header",
    "read_json",
    "readable",
    "remove_leftovers",
    "sealed",
    "set_aside",
    "slug",
    "understanding",
    "versions",
    "write_arrays",
    "write_bytes",
    "write_checked",
    "write_json",
    "write_manifest",
    "write_sealed",
]
