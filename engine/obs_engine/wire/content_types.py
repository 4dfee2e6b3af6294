"""The Content-Type of an object whose caller names none: by the suffix of its key, the same on every host.

Why not `mimetypes.guess_type` alone: it reads the host's files and changes with Python, and a resumed upload must be
offered with the headers that it began with. Why no type for other suffixes: the official SDK sends none either, and
the service then stores its own default. tests/integration/test_differential.py asks the installed SDK for each.
"""

from __future__ import annotations

from functools import lru_cache

# The type that the standard library has had for them in every version since 3.10.
_STANDARD = frozenset(
    """ai aif avi css csv doc dvi eps etx gif htm html jpe jpeg jpg json latex mov mp3 mp4 mpe mpeg mpg pbm pdf pgm
    png pnm ppm ppt ps qt ras svg swf tar tif tiff txt wasm wav webm xbm xls xpm xwd zip""".split()
)
_OFFICE = "application/vnd.openxmlformats-officedocument"
# Of these the standard library knows nothing, or says it differently. Source: the IANA registry where it has the type;
# the official SDK where it keeps to an older name.
_OTHERS = {
    "7z": "application/x-7z-compressed",
    "aac": "audio/x-aac",
    "apk": "application/vnd.android.package-archive",
    "asf": "video/x-ms-asf",
    "atom": "application/atom+xml",
    "bmp": "image/bmp",
    "bz2": "application/x-bzip2",
    "cer": "application/pkix-cert",
    "crl": "application/pkix-crl",
    "crt": "application/x-x509-ca-cert",
    "cu": "application/cu-seeme",
    "deb": "application/x-debian-package",
    "docx": f"{_OFFICE}.wordprocessingml.document",
    "eot": "application/vnd.ms-fontobject",
    "epub": "application/epub+zip",
    "flac": "audio/flac",
    "flv": "video/x-flv",
    "gz": "application/gzip",
    "ico": "image/x-icon",
    "ics": "text/calendar",
    "iso": "application/x-iso9660-image",
    "jar": "application/java-archive",
    "js": "text/javascript",
    "ogv": "video/ogg",
    "ogx": "application/ogg",
    "pptx": f"{_OFFICE}.presentationml.presentation",
    "rar": "application/x-rar-compressed",
    "rss": "application/rss+xml",
    "rtf": "application/rtf",
    "torrent": "application/x-bittorrent",
    "ttf": "application/font-ttf",
    "wma": "audio/x-ms-wma",
    "wmv": "video/x-ms-wmv",
    "woff": "application/font-woff",
    "wsdl": "application/wsdl+xml",
    "xlsx": f"{_OFFICE}.spreadsheetml.sheet",
    "xml": "application/xml",
    **dict.fromkeys(("asc", "ini", "log"), "text/plain"),
    **dict.fromkeys(("m4a", "mp4a"), "audio/mp4"),
    **dict.fromkeys(("m4v", "mp4v", "mpg4"), "video/mp4"),
    **dict.fromkeys(("mid", "midi"), "audio/midi"),
    **dict.fromkeys(("oga", "ogg"), "audio/ogg"),
    **dict.fromkeys(("sgm", "sgml"), "text/sgml"),
    **dict.fromkeys(("yaml", "yml"), "text/yaml"),
}


def content_type_of(key: str) -> str | None:
    """The type by what follows the key's last dot (or the whole key without one), in any case of letters."""
    return _type_of(key.rpartition(".")[2].lower())


@lru_cache(maxsize=256)
def _type_of(suffix: str) -> str | None:
    if suffix not in _STANDARD:
        return _OTHERS.get(suffix)
    from mimetypes import MimeTypes

    # Why by hand: the module's own functions look into the host's files.
    return MimeTypes(filenames=()).types_map[1].get(f".{suffix}")
