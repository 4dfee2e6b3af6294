"""What OBS allows, each number with its source. Used before anything is sent."""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

PART_SIZE_MIN_BYTES = 100 * KIB
PART_SIZE_MAX_BYTES = 5 * GIB
PART_SIZE_DEFAULT_BYTES = 9 * MIB
"""Source: "Uploading an Object - Resumable", Table 1, partSize."""

PART_COUNT_MAX = 10_000
"""Source: OBS API, "Uploading Parts": part numbers 1 to 10000."""

OBJECT_SIZE_MAX_BYTES = PART_COUNT_MAX * PART_SIZE_MAX_BYTES
"""Source: OBS API, "Object": 48.8 TB, which is 10,000 parts of 5 GB."""

TASK_NUM_MIN, TASK_NUM_MAX = 1, 10_000
"""Source: "Uploading an Object - Resumable", Table 1, taskNum."""

KEY_LENGTH_MAX = 1024
"""Characters. Source: same table, objectKey."""

BUCKET_LENGTH_MIN, BUCKET_LENGTH_MAX = 3, 63
"""Source: same table, bucketName."""

LOCATION_MAX_BYTES = 2048
"""Source: Table 2, location."""

METADATA_MAX_BYTES = 8 * KIB
"""Sum of the UTF-8 lengths of keys and values. Source: Table 1, metadata."""

LIST_PARTS_PAGE_MAX = 1000
"""Source: OBS API, "Listing Uploaded Parts", max-parts."""

CONTENT_CHUNK_BYTES, CONTENT_BLOCK_BYTES = MIB, 64 * MIB
"""Of the tree of digests that `checkSum` knows a file by: a leaf, and a knot of leaves. Numbers of ours."""

REPLY_BODY_MAX_BYTES = 8 * MIB
"""A reply to any request of ours is XML; the largest is a page of 1,000 parts (some 300 KB)."""
