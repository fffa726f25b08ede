"""The process that starts containers, each in a mount namespace of its own.

It is small and has one thread, so that it can fork in a fraction of a millisecond and do between fork and
exec what a large server with threads must not do: enter namespaces and mount. What it starts becomes a child
of the server, not of itself, so that the server waits for it as for any other child.

It enters a namespace of its own first (as root, or else through a user namespace) and prepares there what all
containers share: a private ``/dev`` with a place for the termination log. Nothing of it can be seen outside,
and the kernel takes it away with the last process inside. Run as ``python spawner.py
DIRECTORY MODE``, with a socket as its standard input; it ends at that socket's end of file, however the
server went. It imports nothing of this project, so that it starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import platform
import shutil
import signal
import socket
import stat
import sys
from typing import Any

_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER
_CLONE_PARENT = 0x00008000
_READ_ONLY, _REMOUNT, _BIND, _MOVE, _RECURSIVE, _SLAVE = 1, 32, 4096, 8192, 16384, 1 << 19
_DETACH = 2

# The flags that a mount has and a remount must repeat: statvfs's bits on the left, mount's on the right.
_KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}

# System calls without a wrapper in the C library: (clone, pivot_root).
_NUMBERS = {"x86_64": (56, 155), "aarch64": (220, 41)}

# In a container's /dev: not the consoles, and no disks.
_HIDDEN_DEVICES = ("tty", "vcs")
_SHOWN_DEVICES = ("tty",)

_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """A container cannot be started; ``kind`` says which step failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number).lower()}")
    return result


def _mount(source: str, target: str, flags: int, kind: str = "", options: str = "") -> None:
    arguments = [os.fsencode(text) if text else None for text in (source, target, kind)]
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(options) if options else None)
    _checked(result, f"mount {target}")


def _unmount(target: str) -> None:
    _checked(_libc.umount2(os.fsencode(target), _DETACH), f"umount {target}")


def _unshare(flags: int) -> None:
    _checked(_libc.unshare(flags), "unshare")


# The namespace that all containers' namespaces are copies of


def _enter(mode: str) -> None:
    """A mount namespace, as root if that works, else as the root of a user namespace."""
    user, group = os.geteuid(), os.getegid()
    if mode == "user" or user != 0:
        _enter_user_namespace(user, group)
    else:
        try:
            _unshare(_NEW_MOUNTS)
        except PermissionError:
            _enter_user_namespace(user, group)
    # Mounts of the machine still arrive here; ours never get out.
    _mount("", "/", _RECURSIVE | _SLAVE)


def _enter_user_namespace(user: int, group: int) -> None:
    _unshare(_NEW_USERS | _NEW_MOUNTS)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _prepare(directory: str) -> None:
    _mount("tmpfs", directory, 0, "tmpfs", "mode=755")
    stage = f"{directory}/stage"
    os.mkdir(stage)
    _mount("tmpfs", stage, 0, "tmpfs", "mode=755")
    for entry in os.scandir("/dev"):
        if entry.name == "termination-log" or _is_hidden(entry):
            continue
        try:
            _show(entry.path, f"{stage}/{entry.name}")
        except OSError:
            continue  # a device that this user may not even see
    _touch(f"{stage}/termination-log")
    _mount(stage, "/dev", _MOVE)


def _is_hidden(entry: os.DirEntry[str]) -> bool:
    if entry.name not in _SHOWN_DEVICES and entry.name.startswith(_HIDDEN_DEVICES):
        return True
    return stat.S_ISBLK(entry.stat(follow_symlinks=False).st_mode)


def _show(path: str, target: str) -> None:
    """The same entry in another folder."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        os.symlink(os.readlink(path), target)
        return
    if stat.S_ISDIR(mode):
        os.mkdir(target)
    else:
        _touch(target)
    _mount(path, target, _BIND | _RECURSIVE)


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))


# A container's own mounts


class _Tree:
    """Builds one container's view of the machine, in a namespace of its own."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._own: set[int] = set()  # devices of the folders opened up here
        self._volumes: dict[str, bool] = {}  # where volumes are, and whether folders may be made in them

    def add(self, mount: dict[str, Any]) -> None:
        source, sub_path, keep = mount["source"], mount["sub_path"], -1
        target = os.path.realpath(mount["target"])
        try:
            self._make(target, _is_folder(source, sub_path))
            if sub_path:
                # Opened only now: making the target may have changed the root, and with it all paths.
                keep = _open_below(source, sub_path)
                source = f"/proc/self/fd/{keep}"
            _mount(source, target, _BIND | _RECURSIVE)
            if mount["read_only"]:
                flags = os.statvfs(target).f_flag
                kept = sum(new for old, new in _KEPT_FLAGS.items() if flags & old)
                _mount("", target, _REMOUNT | _BIND | _READ_ONLY | kept)
        except OSError as error:
            why = error.strerror or str(error)
            raise Failure(
                "mount", f'error mounting "{mount["source"]}" at {mount["target"]}: {why}'
            ) from error
        finally:
            if keep >= 0:
                os.close(keep)
        self._volumes[target] = not mount["read_only"]

    def folder(self, path: str) -> None:
        """A working directory that is not there yet, as a container runtime makes it."""
        if not os.path.exists(path):
            self._make(os.path.realpath(path), True)

    def _make(self, target: str, folder: bool) -> None:
        if target == "/":
            raise OSError(errno.EINVAL, "the root cannot be a mount point")
        if os.path.lexists(target):
            if os.path.isdir(target) != folder:
                kinds = ("a file", "a directory") if folder else ("a directory", "a file")
                raise OSError(errno.ENOTDIR, f"{target} is {kinds[0]}, and what is mounted there {kinds[1]}")
            return
        parent = os.path.dirname(target)
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        if not self._may_create_in(parent):
            self._open_up(parent)
        os.makedirs(target if folder else os.path.dirname(target), exist_ok=True)
        if not folder:
            _touch(target)

    def _may_create_in(self, folder: str) -> bool:
        if os.stat(folder).st_dev in self._own:
            return True
        inside = [path for path in self._volumes if folder == path or folder.startswith(f"{path}/")]
        return bool(inside) and self._volumes[max(inside, key=len)]

    def _open_up(self, folder: str) -> None:
        """Put a tmpfs with the same entries over a folder: more can be added to it, the machine sees none."""
        stage = self._stage
        _mount("tmpfs", stage, 0, "tmpfs", "mode=755")
        self._own.add(os.stat(stage).st_dev)
        os.chmod(stage, stat.S_IMODE(os.stat(folder).st_mode))
        # First the entry that holds the stage itself: later it would be copied with all its mounts.
        entries = sorted(os.scandir(folder), key=lambda each: not stage.startswith(f"{each.path}/"))
        for entry in entries:
            _show(entry.path, f"{stage}/{entry.name}")
        if folder != "/":
            _mount(stage, folder, _MOVE)
            return
        os.chdir(stage)
        number = _NUMBERS[platform.machine()][1]
        _checked(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
        _unmount(".")
        os.chdir("/")
        _unmount(stage)


def _is_folder(source: str, sub_path: str) -> bool:
    if not sub_path:
        return os.path.isdir(source)
    opened = _open_below(source, sub_path)
    try:
        return stat.S_ISDIR(os.fstat(opened).st_mode)
    finally:
        os.close(opened)


def _open_below(root: str, path: str) -> int:
    """Open what is below a volume, and make the folders that are missing. It can never lead out of it."""
    try:
        try:
            found = os.open(os.path.join(root, path), os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            return _make_below(root, path)
        # Looked up again from what is open: nobody can exchange it any more.
        real, top = os.readlink(f"/proc/self/fd/{found}"), os.path.realpath(root)
        if real != top and not real.startswith(f"{top}/"):
            os.close(found)
            raise OSError(errno.EPERM, f"{path} leads out of the volume")
    except OSError as error:
        raise Failure("subpath", error.strerror or str(error)) from error
    return found


def _make_below(root: str, path: str) -> int:
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in path.split("/"):
        if part in ("", "."):
            continue
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, 0o755, dir_fd=folder)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            inner = os.open(part, flags, dir_fd=folder)
        finally:
            os.close(folder)
        folder = inner
    return folder


# Starting


class Spawner:
    """Answers the server's requests, one after the other."""

    def __init__(self, directory: str, server: socket.socket) -> None:
        self._stage = f"{directory}/stage"
        self._server = server
        self._server_pid = os.getppid()
        self._clone = _NUMBERS[platform.machine()][0]

    def serve(self) -> None:
        while True:
            received = _receive(self._server)
            if received is None:
                return
            request, descriptors = received
            try:
                answer = self._do(request, descriptors)
            except OSError as error:
                answer = {"error": error.strerror or str(error)}
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
            _send(self._server, answer)

    def _do(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        arguments = [
            ctypes.c_long(each) for each in (self._clone, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        ]
        pid = _checked(_libc.syscall(*arguments), "clone")
        if pid == 0:
            self._become(request, *descriptors)
        return {"pid": pid}

    def _become(self, request: dict[str, Any], output: int, report: int) -> None:
        """In the new process: become the container. Never returns."""
        try:
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            self._enter(request)
            program = _resolve(request["argv"][0], request["env"])
            if os.getppid() != self._server_pid:
                os._exit(1)  # the server is gone: nobody would ever end this process
            try:
                os.execve(program, request["argv"], request["env"])  # noqa: S606
            except (OSError, ValueError) as error:
                why = (
                    os.strerror(error.errno).lower()
                    if isinstance(error, OSError) and error.errno
                    else str(error)
                )
                raise Failure("start", f'exec: "{request["argv"][0]}": {why}') from error
        except Failure as failure:
            os.write(report, json.dumps({"kind": failure.kind, "message": str(failure)}).encode())
        except BaseException as error:
            os.write(report, json.dumps({"kind": "start", "message": str(error) or repr(error)}).encode())
        finally:
            os._exit(127)

    def _enter(self, request: dict[str, Any]) -> None:
        cwd = request["cwd"]
        if request["inside"]:
            namespace = os.open(f"/proc/{request['inside']}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            _checked(_libc.setns(namespace, _NEW_MOUNTS), "setns")
        else:
            _unshare(_NEW_MOUNTS)
            tree = _Tree(self._stage)
            for mount in request["mounts"]:
                tree.add(mount)
            tree.folder(cwd)
        try:
            os.chdir(cwd)
        except OSError as error:
            why = (error.strerror or "").lower()
            raise Failure("start", f'chdir to cwd ("{cwd}") set in config.json failed: {why}') from error


def _resolve(program: str, env: dict[str, str]) -> str:
    if "/" in program:
        if not os.path.exists(program):
            raise Failure("start", f'exec: "{program}": stat {program}: no such file or directory')
        if os.path.isdir(program) or not os.access(program, os.X_OK):
            raise Failure("start", f'exec: "{program}": permission denied')
        return program
    found = shutil.which(program, path=env.get("PATH", ""))
    if found is None:
        raise Failure("start", f'exec: "{program}": executable file not found in $PATH')
    return found


# Messages: eight bytes of length, then JSON. Descriptors come with the length.


def _receive(server: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    head, descriptors, _flags, _address = socket.recv_fds(server, 8, 4)
    if not head:
        return None
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    head += _exactly(server, 8 - len(head))
    request: dict[str, Any] = json.loads(_exactly(server, int.from_bytes(head, "big")))
    return request, descriptors


def _exactly(server: socket.socket, size: int) -> bytes:
    pieces = []
    while size > 0:
        piece = server.recv(min(size, 1 << 20))
        if not piece:
            os._exit(0)
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _send(server: socket.socket, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    try:
        server.sendall(len(body).to_bytes(8, "big") + body)
    except BrokenPipeError:
        os._exit(0)


def _main(directory: str, mode: str) -> None:
    server = socket.socket(fileno=os.dup(0))
    try:
        if platform.machine() not in _NUMBERS:
            raise OSError(errno.ENOSYS, f"not known how on {platform.machine()}")
        _enter(mode)
        _prepare(directory)
    except OSError as error:
        _send(server, {"error": error.strerror or str(error)})
        return
    _send(server, {})
    Spawner(directory, server).serve()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
