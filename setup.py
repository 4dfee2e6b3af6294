"""Builds the optional C extension; everything else is in pyproject.toml.

The extension is optional by design: without a compiler the install succeeds, the portable Python twins take over,
and `obs_engine.digests.kernel()` says so at run time.
"""

import os
import platform

from setuptools import Extension, setup

SOURCES = ["native/module.c"]

cflags = ["-O3", "-Wall", "-Wextra"]
if os.environ.get("OBS_ENGINE_STRICT"):  # the project's own checks; a user's newer compiler may warn of new things
    cflags.append("-Werror")
if platform.system() == "Windows":
    cflags = []

setup(
    ext_modules=[
        Extension(
            "obs_engine._native",
            sources=SOURCES,
            depends=["native/native.h"],
            extra_compile_args=cflags,
            optional=True,
        )
    ]
)
