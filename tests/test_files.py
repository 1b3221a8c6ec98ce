"""What is written is whole, belongs to one writer, and touches nothing of anybody else's."""

import errno
import multiprocessing
import os
import resource
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_probe.checked import load_arrays, save_arrays
from moe_probe.errors import AlreadyThere, Damaged, InputError, MachineError, MoEProbeError, NothingToRead, OutOfRange
from moe_probe.files import Terminated, owned_folder, sigterm_as_interrupt, whole_file, whole_folder

FORK = multiprocessing.get_context("fork")
PROGRESS = {"kind": "saved progress", "schema": 3}
ANEW = {**PROGRESS, "remedy": "delete it to start anew"}


def write(path, text="new"):
    with whole_file(path) as partial:
        partial.write_text(text)


def partials(folder):
    return list(folder.rglob(".*partial*"))


def in_another_process(function, *arguments):
    """What a function gives there; None if it is killed."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    process.join(60)
    return receiver.recv() if receiver.poll() else None


def said(function, *arguments):
    """The sentence of the error that a function raises."""
    try:
        return function(*arguments)
    except MoEProbeError as error:
        return str(error)


def write_and_die(path):
    with whole_file(path) as partial:
        partial.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def write_beyond_a_limit(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    return said(write, path, "x" * 5000)


def own(path):
    with owned_folder(path):
        return "mine"


def write_slowly(path, ready):
    with sigterm_as_interrupt(), whole_file(path) as partial:
        partial.write_text("half")
        ready.set()
        time.sleep(30)


def test_a_link_is_written_through(tmp_path):
    real, link = tmp_path / "disk" / "real.txt", tmp_path / "link.txt"
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(real)
    write(link)
    assert link.is_symlink()
    assert real.read_text() == "new"
    dangling = tmp_path / "dangling.txt"
    dangling.symlink_to(tmp_path / "elsewhere" / "new.txt")
    write(dangling)
    assert (tmp_path / "elsewhere" / "new.txt").read_text() == "new"
    assert not partials(tmp_path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: os.mkfifo(path), "is a pipe"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.symlink_to("/dev/null"), "is a device"),
    ],
)
def test_only_regular_files_are_replaced(make, words, tmp_path):
    path = tmp_path / "out"
    make(path)
    before = path.lstat().st_mode
    with pytest.raises(AlreadyThere, match=words):
        write(path)
    assert path.lstat().st_mode == before


def test_paths_that_cannot_be_are_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, error in [
        (tmp_path / "file" / "below", AlreadyThere),
        (tmp_path / "file" / "deep" / "below", AlreadyThere),
        (tmp_path / ("x" * 256), OutOfRange),
        (tmp_path / "/".join("x" * 2500), OutOfRange),
        (tmp_path / "a\0b", InputError),
        (tmp_path / "loop", InputError),
    ]:
        with pytest.raises(error) as caught:
            write(path)
        assert "\0" not in str(caught.value)
        assert len(str(caught.value)) < 600
    with pytest.raises(MoEProbeError):
        write("/proc/nowhere/x")


def test_the_longest_names_that_the_disk_takes_work(tmp_path):
    for name in ("x" * 240, "x" * 255, "中" * 85):
        write(tmp_path / name)
        assert (tmp_path / name).read_text() == "new"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE])
def test_a_machine_that_fails_is_said_with_a_remedy(number, tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")

    def fail():
        with whole_file(path) as partial:
            partial.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(MachineError, match=r"out\.txt cannot be written \(.*\); (free|raise)"):
        fail()
    assert path.read_text() == "old"
    assert not partials(tmp_path)


def fails_as_libraries_do(path, how):
    with whole_file(path):
        try:
            raise OSError(errno.ENOSPC, "No space left on device") if how == "context" else RuntimeError(how)
        finally:
            if how == "context":
                raise AttributeError("'NoneType' object has no attribute 'tell'")


@pytest.mark.parametrize(
    "how",
    [
        "context",
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "Unable to flush file (file write failed: errno = 28, error message = 'No space left on device')",
    ],
)
def test_a_machine_that_fails_behind_a_librarys_own_error_is_said_too(how, tmp_path):
    with pytest.raises(MachineError, match=r"out cannot be written \(No space left on device\); free some space"):
        fails_as_libraries_do(tmp_path / "out", how)
    with pytest.raises(RuntimeError, match="errno 5000"):
        fails_as_libraries_do(tmp_path / "out", "errno 5000")


def test_other_errors_of_the_body_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "out.txt"):
        (tmp_path / "missing").read_text()
    with pytest.raises(InputError, match="mine"), whole_file(tmp_path / "out.txt"):
        raise InputError("mine")


def test_a_limit_on_the_size_of_files_is_said(tmp_path):
    sentence = in_another_process(write_beyond_a_limit, tmp_path / "out")
    assert "raise the limit on the size of files" in sentence
    assert not list(tmp_path.iterdir())


def test_partials_of_killed_writers_are_swept_and_those_of_others_stay(tmp_path):
    in_another_process(write_and_die, tmp_path / "out")
    (dead,) = partials(tmp_path)
    theirs = [tmp_path / name for name in (".notes.partial", ".out.99999999.partial", "a.partial")]
    elsewhere = dead.with_name(dead.name.replace(dead.name.split(".")[2], "0" * 8))
    for path in [*theirs, elsewhere]:
        path.write_text("theirs")
    with whole_file(tmp_path / "other") as living:
        living.write_text("half")
        write(tmp_path / "out")
        assert living.exists()
    assert not dead.exists()
    assert all(path.exists() for path in [*theirs, elsewhere])


def test_a_second_writer_is_refused_until_the_first_ends(tmp_path):
    with owned_folder(tmp_path / "out") as folder, owned_folder(tmp_path / "out" / "." / "..") as above:
        assert folder.is_dir()
        assert above == folder.parent
        with owned_folder(tmp_path / "out"):
            pass
        sentence = in_another_process(said, own, tmp_path / "out")
        assert "is being written to by another run; wait" in sentence
    assert in_another_process(said, own, tmp_path / "out") == "mine"


def write_folder(path, name="note.txt"):
    with whole_folder(path) as partial:
        (partial / name).write_text("complete")


def die_in_folder(path):
    with whole_folder(path) as partial:
        (partial / "note.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_appears_when_it_is_complete_and_never_over_another(tmp_path):
    in_another_process(die_in_folder, tmp_path / "deep" / "one")
    (dead,) = partials(tmp_path)
    write_folder(tmp_path / "deep" / "one")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["one"]
    assert not dead.exists()
    with pytest.raises(AlreadyThere, match="exists already; pass a path that does not"):
        write_folder(tmp_path / "deep" / "one")

    def overtaken():
        with whole_folder(tmp_path / "two"):
            write_folder(tmp_path / "two", "first.txt")

    with pytest.raises(AlreadyThere, match="exists already"):
        overtaken()
    assert (tmp_path / "two" / "first.txt").exists()
    write_folder(tmp_path / ("x" * 255))
    with pytest.raises(OutOfRange):
        write_folder(tmp_path / ("x" * 256))
    (tmp_path / "file").write_text("x")
    with pytest.raises(AlreadyThere, match="a file is in the way"):
        write_folder(tmp_path / "file" / "below")
    assert not partials(tmp_path)


def test_two_threads_do_not_share_a_folder(tmp_path):
    refused = []

    def second():
        try:
            with owned_folder(tmp_path):
                refused.append(False)
        except AlreadyThere:
            refused.append(True)

    with owned_folder(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert refused == [True]


def test_a_folder_that_is_a_file_cannot_be_owned(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AlreadyThere, match="a file is in the way"), owned_folder(tmp_path / "file"):
        pass


@pytest.fixture
def no_handler():
    """Other packages in this process may have installed a handler of their own."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("no_handler")
def test_sigterm_cleans_up_as_ctrl_c_does(tmp_path):
    ready = FORK.Event()
    process = FORK.Process(target=write_slowly, args=(tmp_path / "out", ready))
    process.start()
    assert ready.wait(20)
    process.terminate()
    process.join(20)
    assert process.exitcode not in (None, 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_handler")
def test_a_handler_of_somebody_elses_stays():
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with sigterm_as_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)

    def terminate():
        with sigterm_as_interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    with pytest.raises(Terminated):
        terminate()


def some_arrays(path):
    arrays = {"a/b": np.arange(5), "weights": np.ones((2, 3), np.float32), "labels": np.asarray(["x", "yz"])}
    save_arrays(path, arrays, **PROGRESS, about={"key": "k", "done": 4})
    return arrays


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = some_arrays(tmp_path / "state.npz")
    read = load_arrays(tmp_path / "state.npz", **ANEW)
    assert (read.about["key"], read.about["done"]) == ("k", 4)
    assert read.arrays.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(read.arrays[name], values)
    with np.load(tmp_path / "state.npz") as plain:
        assert plain["/a/b"].tolist() == [0, 1, 2, 3, 4]


def test_arrays_of_another_kind_or_format_are_refused(tmp_path):
    path = tmp_path / "state.npz"
    with pytest.raises(NothingToRead, match="is not a file"):
        load_arrays(path, **ANEW)
    save_arrays(path, {}, kind="saved progress", schema=2, about={})
    with pytest.raises(Damaged, match="is saved progress of format 2, not saved progress of format 3; delete it"):
        load_arrays(path, **ANEW)
    save_arrays(path, {}, kind="a pile", schema=3, about={})
    with pytest.raises(Damaged, match="is a pile of format 3"):
        load_arrays(path, **ANEW)
    np.savez(path, key="x", done=3)
    with pytest.raises(Damaged, match="cut off or edited"):
        load_arrays(path, **ANEW)


@settings(max_examples=60)
@given(data=st.data())
def test_any_change_of_saved_arrays_is_noticed(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "changed.npz"
    some_arrays(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(Damaged, match="delete it to start anew"):
        load_arrays(path, **ANEW)
