"""What every artefact on disk shares: atomic writes, array files, manifests and fingerprints.

A file is written beside its final name, flushed to disk and renamed, so a reader (or a run resumed after ``kill -9``)
sees it whole or not at all. Arrays and weights live in safetensors, manifests in JSON; nothing is pickled.
"""

from comove.checks import as_array, as_ids
from comove.store.arrays import (
    as_header,
    map_array,
    read_arrays,
    read_checked,
    read_header,
    write_arrays,
    write_checked,
)
from comove.store.files import TEMPORARY, is_empty, new_folder, read_json, write_bytes, write_json
from comove.store.manifests import (
    MANIFEST,
    check_fingerprint,
    check_kind,
    claim_folder,
    command_line,
    digest,
    open_manifest,
    versions,
    write_manifest,
)
from comove.store.rows import LazyRows

__all__ = [
    "MANIFEST",
    "TEMPORARY",
    "LazyRows",
    "as_array",
    "as_header",
    "as_ids",
    "check_fingerprint",
    "check_kind",
    "claim_folder",
    "command_line",
    "digest",
    "is_empty",
    "map_array",
    "new_folder",
    "open_manifest",
    "read_arrays",
    "read_checked",
    "read_header",
    "read_json",
    "versions",
    "write_arrays",
    "write_bytes",
    "write_checked",
    "write_json",
    "write_manifest",
]
