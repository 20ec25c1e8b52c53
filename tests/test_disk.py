"""What is written is there as a whole or not at all, and for everyone whom the umask lets read."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from turncoder.disk import default_cache, lock_output, replace_file, replace_folder, write_atomically
from turncoder.errors import UserError


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path, plain = tmp_path / "file.txt", tmp_path / "plain"
    plain.touch()
    write_atomically(path, "old \u2192\n")
    assert path.read_bytes() == "old \u2192\n".encode() and path.stat().st_mode == plain.stat().st_mode
    with pytest.raises(OSError, match="full"), replace_file(path) as partial:
        partial.write_text("new")
        assert path.read_text(encoding="utf8") == "old \u2192\n"
        raise OSError("full")
    assert path.read_text(encoding="utf8") == "old \u2192\n" and set(tmp_path.iterdir()) == {path, plain}


def test_a_folder_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    folder, plain = tmp_path / "deep" / "model", tmp_path / "plain"
    plain.touch()
    with replace_folder(folder) as partial:
        (partial / "old").touch(mode=0o600)
        killed = partial
    assert (folder / "old").stat().st_mode == plain.stat().st_mode
    with pytest.raises(KeyboardInterrupt), replace_folder(folder) as partial:
        raise KeyboardInterrupt
    assert [path.name for path in folder.iterdir()] == ["old"] and list(folder.parent.iterdir()) == [folder]
    killed.mkdir()
    (killed / "half").touch()  # of a process that was killed
    with replace_folder(folder) as partial:
        (partial / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new"] and list(folder.parent.iterdir()) == [folder]


def test_where_a_link_leads_to_a_folder_is_replaced(tmp_path: Path) -> None:
    link, real = tmp_path / "link", tmp_path / "scratch" / "model"
    real.parent.mkdir()
    link.symlink_to(real)  # which is not there yet
    for name in ("old", "new", "newest"):
        with replace_folder(link) as partial:
            (partial / name).touch()
        assert link.readlink() == real and [path.name for path in real.iterdir()] == [name]
    assert list(real.parent.iterdir()) == [real] and set(tmp_path.iterdir()) == {link, real.parent}


@pytest.mark.parametrize("cut", ["aside", "in place", "cleared"])
def test_one_of_two_folders_is_whole_whenever_the_swap_ends(
    cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    with replace_folder(folder) as partial:
        (partial / "old").touch()
    rename, rmtree, calls = Path.rename, shutil.rmtree, []

    def move(self: Path, target: Path) -> Path:
        calls.append(target)
        if cut == "aside" or (cut == "in place" and len(calls) == 2):
            raise OSError("busy")
        return rename(self, target)

    def remove(path: Path, **others: Any) -> None:
        if cut == "cleared" and calls:
            raise KeyboardInterrupt
        rmtree(path, **others)

    monkeypatch.setattr(Path, "rename", move)
    monkeypatch.setattr(shutil, "rmtree", remove)
    with pytest.raises((OSError, KeyboardInterrupt)), replace_folder(folder) as partial:
        (partial / "new").touch()
    assert [path.name for path in folder.iterdir()] == ["new" if cut == "cleared" else "old"]


@pytest.mark.parametrize(
    ("named", "users", "expected"),
    [("~/kept", "/cache", "home/kept"), ("", "/cache", "/cache/turncoder"), (None, "", "home/.cache/turncoder")],
)
def test_the_cache_lies_where_the_user_says(
    named: str | None, users: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", users)
    monkeypatch.delenv("TURNCODER_CACHE")
    if named is not None:
        monkeypatch.setenv("TURNCODER_CACHE", named)
    assert default_cache() == tmp_path / expected


def test_a_third_job_keeps_out_while_a_second_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    second, release = FileLock(tmp_path / ".out.lock", timeout=0), FileLock.release

    def release_to_the_second(self: FileLock, force: bool = False) -> None:
        release(self, force)
        monkeypatch.setattr(FileLock, "release", release)
        second.acquire()

    monkeypatch.setattr(FileLock, "release", release_to_the_second)
    with lock_output(tmp_path / "out"):
        pass
    with pytest.raises(UserError, match="another job is writing there"), lock_output(tmp_path / "out"):
        pass
    second.release()
