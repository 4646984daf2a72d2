# SPDX-License-Identifier: Apache-2.0
"""PEP 517 backend: builds a wheel of Detectron2 0.5 from the sdist `detectron2-cdo` of the index.

The sdist holds the whole Python source, but pip can neither download it (one of its extras is a
direct URL) nor build it (its C++ sources are missing). So this backend fetches it by name, checks
its sha256, applies the fix-ups of `fixups.py` and writes the wheel with the standard library.
"""

import base64
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from fixups import apply_fixups

NAME = "detectron2"
VERSION = "0.5"
SDIST_PROJECT = "detectron2-cdo"
SDIST_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"

# Those of the sdist without `black`, `future`, `dataclasses` and the upper bound on iopath. Like
# upstream, torch and OpenCV are left to whoever installs this: both come in several builds.
REQUIRES_DIST = (
    "Pillow>=7.1",
    "cloudpickle",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.1",
    "iopath>=0.1.7",
    "matplotlib",
    "omegaconf>=2.1",
    "pycocotools>=2.0.2",
    "pydot",
    "tabulate",
    "tensorboard",
    "termcolor>=1.1",
    "tqdm>4.29.0",
    "yacs>=0.1.6",
)

HERE = Path(__file__).resolve().parent
DIST_INFO = f"{NAME}-{VERSION}.dist-info"
TIMEOUT_S = 60  # per network operation


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """PEP 517 hook: write the wheel into `wheel_directory` and return its file name."""
    files = wheel_files(read_sdist(fetch_sdist()), (HERE / "missing_ops.py").read_bytes())
    filename = f"{NAME}-{VERSION}-py3-none-any.whl"
    write_wheel(Path(wheel_directory) / filename, files)
    return filename


def build_sdist(sdist_directory, config_settings=None):
    """PEP 517 hook, refused: the source is the sdist of the index, not this folder."""
    raise NotImplementedError(
        f"{NAME} {VERSION} is repackaged from {SDIST_PROJECT}: build a wheel, not an sdist"
    )


def pip_option(name):
    """A global option of the user's pip (environment, then configuration files), or None."""
    value = os.environ.get("PIP_" + name.upper().replace("-", "_"))
    if value:
        return value
    # -I: inside an isolated build, pip is importable only without the build's own path. `config
    # list` and not `config get`, which reads one file only.
    command = [sys.executable, "-I", "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(rf"^global\.{name}=(['\"])(.*)\1$", listed, re.MULTILINE)
    return found.group(2) if found else None


def fetch_sdist():
    """The bytes of the sdist from the user's package index, sha256 checked."""
    import requests  # comes with pypi_simple, which only the build environment has
    from pypi_simple import PyPISimple

    session = requests.Session()
    session.verify = pip_option("cert") or True
    index = pip_option("index-url")
    client = PyPISimple(**({"endpoint": index} if index else {}), session=session)
    with client, tempfile.TemporaryDirectory() as folder:
        page = client.get_project_page(SDIST_PROJECT, timeout=TIMEOUT_S)
        found = [
            package
            for package in page.packages
            if package.package_type == "sdist" and package.version == VERSION
        ]
        if not found:
            raise RuntimeError(f"the package index has no sdist of {SDIST_PROJECT} {VERSION}")
        path = Path(folder) / "sdist"
        # verify=False: the digest that counts is the one above, not the one the index names.
        client.download_package(found[0], path, verify=False, timeout=TIMEOUT_S)
        return checked(path.read_bytes())


def checked(sdist, sha256=SDIST_SHA256):
    """Return `sdist` if its sha256 is the expected one, else raise ValueError."""
    got = hashlib.sha256(sdist).hexdigest()
    if got != sha256:
        raise ValueError(f"{SDIST_PROJECT} {VERSION}: expected sha256 {sha256}, got {got}")
    return sdist


def read_sdist(sdist):
    """Map each regular file's path, below the sdist's top folder, to its bytes."""
    with tarfile.open(fileobj=io.BytesIO(sdist), mode="r:gz") as archive:
        return {
            member.name.partition("/")[2]: archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }


def wheel_files(source, missing_ops):
    """What goes into the wheel: the fixed package, the stand-in for `_C`, and the metadata."""
    package = {path: data for path, data in source.items() if path.startswith(f"{NAME}/")}
    files = apply_fixups(package)
    files[f"{NAME}/_C.py"] = missing_ops
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {NAME}",
        f"Version: {VERSION}",
        f"Summary: Detectron2 {VERSION} without its C++ ops, repackaged from {SDIST_PROJECT}",
        "License: Apache-2.0",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES_DIST),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: repackage", "Root-Is-Purelib: true"]
    files[f"{DIST_INFO}/METADATA"] = "\n".join([*metadata, ""]).encode()
    files[f"{DIST_INFO}/WHEEL"] = "\n".join([*wheel, "Tag: py3-none-any", ""]).encode()
    files[f"{DIST_INFO}/LICENSE"] = source["LICENSE"]
    return files


def write_wheel(path, files):
    """Write `files` (path to bytes) and their RECORD as a wheel."""
    rows = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}")
            archive.writestr(name, data)
        record = f"{DIST_INFO}/RECORD"
        archive.writestr(record, "\n".join([*rows, f"{record},,", ""]))
