"""Builds the wheel with nothing but the standard library (PEP 517): a zip of the package, its metadata and its hashes."""

import base64
import hashlib
import os
import platform
import subprocess
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME, VERSION = "sexton", "0.1.0"
TAG = f"py3-none-linux_{platform.machine()}"


def library() -> bytes:
    """The C library: the one that `SEXTON_LIBRARY` names, or a fresh one by cargo."""
    if "SEXTON_LIBRARY" in os.environ:
        return Path(os.environ["SEXTON_LIBRARY"]).read_bytes()
    repository = HERE.parent.parent
    cargo = os.environ.get("CARGO", "cargo")
    subprocess.run([cargo, "build", "--profile", "ffi", "-p", "sexton-ffi"], cwd=repository, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", repository / "target"))
    return (target / "ffi" / "libsexton_ffi.so").read_bytes()


def get_requires_for_build_wheel(config_settings=None):
    return []


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    info = f"{NAME}-{VERSION}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {VERSION}\nRequires-Python: >=3.9\n"
    metadata += "License: Apache-2.0 OR MIT\nDescription-Content-Type: text/markdown\n\n"
    files = {
        f"{NAME}/__init__.py": (HERE / NAME / "__init__.py").read_bytes(),
        f"{NAME}/py.typed": b"",
        f"{NAME}/libsexton_ffi.so": library(),
        f"{info}/METADATA": (metadata + (HERE / "README.md").read_text()).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: sexton\nRoot-Is-Purelib: false\nTag: {TAG}\n".encode(),
    }
    record = "".join(f"{path},sha256={digest(data)},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = f"{NAME}-{VERSION}-{TAG}.whl"
    with zipfile.ZipFile(Path(wheel_directory) / wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in files.items():
            # A fixed date, so that the same sources make the same wheel.
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return wheel


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
