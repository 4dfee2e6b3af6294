"""Builds the optional C extension; everything else is in pyproject.toml.

The extension is optional by design: without a compiler the install succeeds, the portable Python twins take over,
and `obs_engine.digests.kernel()` says so at run time.
"""

import os
import platform

from setuptools import Extension, setup

SOURCES = [
    "native/module.c",
    "native/md5_many.c",
    "native/md5_scalar.c",
    "native/md5_avx512.c",
    "native/md5_avx2.c",
    "native/md5_simd128.c",
    "native/crc64.c",
]
HEADERS = ["native/native.h", "native/md5_rounds.h", "native/md5_lanes.h"]

# Why -g0: the debug information of the unrolled kernels is ten times their code.
cflags = ["-std=c11", "-O3", "-g0", "-Wall", "-Wextra"]
if os.environ.get("OBS_ENGINE_STRICT"):  # the project's own checks; a user's newer compiler may warn of new things
    cflags.append("-Werror")
if platform.system() == "Windows":
    cflags = ["/std:c11", "/O2"]

setup(
    ext_modules=[
        Extension(
            "obs_engine._native",
            sources=SOURCES,
            depends=HEADERS,
            extra_compile_args=cflags,
            optional=True,
        )
    ]
)
