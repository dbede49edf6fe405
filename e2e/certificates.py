"""Certificates, made by openssl."""

import subprocess
from pathlib import Path

# In each of them, beside 127.0.0.1.
NAME = "agent.test"


class Authority:
    """Signs certificates, all in one directory."""

    def __init__(self, directory: Path, name: str):
        self.directory, self.name = directory, name
        directory.mkdir(exist_ok=True)
        self.run("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", f"/CN={name}", "-keyout", self.path("key"), "-out", self.path("crt"))

    def run(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def path(self, kind: str) -> Path:
        return self.directory / f"{self.name}.{kind}"

    def sign(self, name: str, subject: str) -> tuple[Path, Path]:
        """Certificate and key."""
        key, request, certificate, extensions = (self.directory / f"{name}.{kind}" for kind in ["key", "csr", "crt", "ext"])
        extensions.write_text(f"subjectAltName = DNS:{NAME}, IP:127.0.0.1\nbasicConstraints = CA:FALSE\n")
        self.run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject, "-keyout", key,
                 "-out", request)
        self.run("x509", "-req", "-in", request, "-CA", self.path("crt"), "-CAkey", self.path("key"), "-days", "2",
                 "-extfile", extensions, "-out", certificate)
        return certificate, key
