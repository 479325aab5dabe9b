"""How this machine reaches its Python package index, as configuration files for a build.

They are mounted while the build runs: nothing of them is in the image, nor in its environment.
"""

from __future__ import annotations

import configparser
import json
import os
from pathlib import Path

# In our base image: Debian's CAs and those that this machine trusts.
_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
_PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


def write_configuration(folder: Path) -> dict[str, Path]:
    """Writes the files, and returns what is to be mounted where."""
    pip, uv = folder / "pip", folder / "uv"
    pip.mkdir()
    uv.mkdir()
    settings = {"cert": _BUNDLE, **pip_settings()}
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (pip / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    (uv / "uv.toml").write_text(_uv())
    return {"/etc/xdg/pip": pip, "/etc/xdg/uv": uv}


def pip_settings() -> dict[str, str]:
    """Index, proxy and patience, from pip's files and variables. Local folders are left out."""
    settings: dict[str, str] = {}
    files = [*_PIP_FILES, os.environ.get("PIP_CONFIG_FILE", "")]
    for file in files:
        parser = configparser.RawConfigParser()
        parser.read(Path(file).expanduser() if file else [])
        if parser.has_section("global"):
            settings |= dict(parser.items("global"))
    for name, value in os.environ.items():
        if name.startswith("PIP_"):
            option = name.removeprefix("PIP_").lower().replace("_", "-")
            settings[option] = value
    if "default-timeout" in settings:
        settings["timeout"] = settings["default-timeout"]
    found = {name: settings[name].strip() for name in _PIP_SETTINGS if name in settings}
    return {name: value.replace("\n", "\n    ") for name, value in found.items()}


def _uv() -> str:
    lines = ["native-tls = true  # the CAs of the system, as pip", 'python-downloads = "never"']
    default = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    more = (os.environ.get("UV_INDEX") or os.environ.get("UV_EXTRA_INDEX_URL") or "").split()
    for url in more:
        lines += ["[[index]]", f"url = {json.dumps(url.rpartition('=')[2])}"]
    if default:
        lines += ["[[index]]", f"url = {json.dumps(default.rpartition('=')[2])}", "default = true"]
    return "\n".join([*lines, ""])
