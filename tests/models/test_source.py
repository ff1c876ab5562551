"""The source resolver: what each spelling finds, and what it says when nothing is there."""

import huggingface_hub
import pytest

from hrsa_jax.models.source import resolve
from hrsa_jax.runtime.errors import InputError


def model_at(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_folders_and_files(tmp_path, monkeypatch):
    folder = model_at(tmp_path / "org" / "name")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert (resolve(folder).kind, resolve(str(folder)).path) == ("folder", folder)
    assert resolve(tmp_path / "x.gguf").kind == "gguf"
    assert resolve(tmp_path).path == tmp_path / "x.gguf"
    monkeypatch.chdir(tmp_path)
    assert resolve("org/name").kind == "folder"  # a folder here wins over a hub id


def test_packages_are_found_without_importing_them(tmp_path, monkeypatch):
    model_at(tmp_path / "some_weights" / "model")
    (tmp_path / "some_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setenv("HRSA_OFFLINE", str(tmp_path))
    assert resolve("package:some_weights").path == tmp_path / "some_weights" / "model"
    monkeypatch.delenv("HRSA_OFFLINE")
    (tmp_path / "other_weights").mkdir()
    (tmp_path / "other_weights" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "other_weights" / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package:other_weights").path.name == "m.gguf"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "is empty"),
        ("a\0b", "NUL byte"),
        ("/no/such/folder", "does not exist"),
        ("./no/such", "does not exist"),
        ("model.gguf", "does not exist"),
        ("one/two/three", "no existing path, hub id"),
        ("noslash", "no existing path, hub id"),
        ("package:no_such_package", "no_such_package"),
        ("package:../x", "no package name"),
    ],
)
def test_what_is_not_there_is_one_sentence(source, message):
    with pytest.raises(InputError) as caught:
        resolve(source)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_models(tmp_path):
    with pytest.raises(InputError, match=r"neither config\.json nor a \.gguf"):
        resolve(tmp_path)
    (tmp_path / "a.gguf").touch()
    (tmp_path / "b.gguf").touch()
    with pytest.raises(InputError, match=r"2 \.gguf files \(a\.gguf, b\.gguf\)"):
        resolve(tmp_path)
    (tmp_path / "model.bin").touch()
    with pytest.raises(InputError, match=r"not \.gguf"):
        resolve(tmp_path / "model.bin")


def test_hub_ids_pass_revision_and_patterns_and_obey_offline(tmp_path, monkeypatch):
    calls = []

    def download(name, **options):
        calls.append((name, options))
        return str(model_at(tmp_path / f"snap{len(calls)}"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = resolve("org/name@v2")
    name, options = calls[0]
    assert (name, options["revision"], options["local_files_only"]) == ("org/name", "v2", True)
    assert "*.safetensors" in options["allow_patterns"]
    assert not any("bin" in pattern or pattern.endswith("py") for pattern in options["allow_patterns"])
    assert found.revision == "snap1"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    resolve("org/name")
    assert calls[1][1]["local_files_only"] is False


def test_offline_hub_touches_no_network(tmp_path, monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="not in the local hub cache and HF_HUB_OFFLINE=1 forbids the network"):
        resolve("no-such-org/no-such-model@main")


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*args, **kwargs):
        raise LocalEntryNotFoundError("An error happened while trying to locate the files on the Hub\nmore")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match="the hub cannot be reached: download it") as caught:
        resolve("org/name")
    assert "\n" not in str(caught.value)
