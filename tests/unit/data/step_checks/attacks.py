"""What sandboxed code may try, by kind, and how each try must end.

``ATTEMPTS`` fail one by one: many run in one process, each in its own ``try``. Beside its code stands the built-in error that it must
raise, where that is not ``PermissionError``. ``RUNS`` end their process, or are about how it ends; beside the code stands the reason.

The code of an attempt sees the names of ``PRELUDE`` and these: ``secret`` (a file that it may not read), ``library`` (one that it may),
``folder`` (theirs), ``target`` (a path in it where nothing is), ``own`` (a file of its own), ``parent`` and ``bystander`` (processes), and
``port``. In ``ON_FILES``, ``path`` is ``secret`` in one attempt and ``library`` in another.
"""

PRELUDE = r"""
import ctypes, fcntl, mmap, os, resource, shutil, signal, socket, stat, struct, subprocess, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)

def native(argument):
    if isinstance(argument, str):
        return argument.encode()
    return ctypes.c_long(argument) if isinstance(argument, int) else argument

def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *map(native, arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
"""

ON_FILES: dict[str, dict[str, str | tuple[str, str]]] = {
    "write": {
        "open to update": "open(path, 'r+')",
        "open to write": "os.open(path, os.O_WRONLY)",
        "open to read and write": "os.open(path, os.O_RDWR)",
        "open with mode 3": "os.open(path, 3)",
        "open directly": "os.open(path, os.O_RDWR | os.O_DIRECT)",
        "open by openat2": "call(437, -100, path, struct.pack('QQQ', os.O_WRONLY, 0, 0), 24)",
        "open beneath the root of a process": "open('/proc/self/root' + path, 'r+')",
        "open beside the scratch directory": "open(os.path.relpath(path), 'r+')",
        "open again by /proc": "os.open(f'/proc/self/fd/{os.open(path, os.O_RDONLY)}', os.O_RDWR)",
        "open again by /dev": "os.open(f'/dev/fd/{os.open(path, os.O_RDONLY)}', os.O_RDWR)",
        "map shared": "mmap.mmap(os.open(path, os.O_RDONLY), 1, mmap.MAP_SHARED, mmap.PROT_WRITE)",
        "clone another file into it": "fcntl.ioctl(os.open(path, os.O_RDONLY), 0x40049409, os.open(own, os.O_RDONLY))",
        "copy another file into it": "call(326, os.open(own, os.O_RDONLY), None, os.open(path, os.O_RDONLY), None, 1, 0)",
        "send another file to it": "call(40, os.open(path, os.O_RDONLY), os.open(own, os.O_RDONLY), None, 1)",
        "map to read, then allow writing": (
            "libc.mmap.restype = ctypes.c_void_p\n"
            "place = libc.mmap(None, ctypes.c_size_t(4096), 1, 1, os.open(path, os.O_RDONLY), ctypes.c_long(0))\n"
            "call(10, place, 4096, 3)",
            "OSError",
        ),
        "splice its output into it": "call(275, 1, None, os.open(path, os.O_RDONLY), None, 1, 0)",
        "write with flags": "call(328, os.open(path, os.O_RDONLY), struct.pack('QQ', 0, 0), 1, 0, 0, 0)",
        "lock": "call(73, os.open(path, os.O_RDONLY), 2)",
        "lock a range": "fcntl.lockf(os.open(path, os.O_RDONLY), fcntl.LOCK_SH)",
        "lease": "fcntl.fcntl(os.open(path, os.O_RDONLY), fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    },
    "append": {
        "open to append": "open(path, 'ab')",
        "open to write at the end": "os.open(path, os.O_WRONLY | os.O_APPEND)",
        "open to read and write at the end": "os.open(path, os.O_RDWR | os.O_APPEND)",
        "open with mode 3": "os.open(path, 3 | os.O_APPEND)",
        "open or create": "os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)",
        "set the flag afterwards": "fcntl.fcntl(os.open(path, os.O_RDONLY), fcntl.F_SETFL, os.O_APPEND)",
    },
    "truncate": {
        "open to replace": "open(path, 'wb')",
        "open to read, with truncation": "os.open(path, os.O_RDONLY | os.O_TRUNC)",
        "open with mode 3, with truncation": "os.open(path, 3 | os.O_TRUNC)",
        "open to write, with truncation": "os.open(path, os.O_WRONLY | os.O_TRUNC)",
        "create or read, with truncation": "os.open(path, os.O_CREAT | os.O_TRUNC)",
        "open as a place, with truncation": "os.open(path, os.O_PATH | os.O_TRUNC)",
        "open with mode 3 and no other flag than truncation, natively": "call(2, path, 3 | os.O_TRUNC)",
        "open relative to a directory, natively": "call(257, -100, path, 3 | os.O_TRUNC)",
        "with bits beyond an int": "call(2, path, (1 << 32) | os.O_TRUNC)",
        "with an unknown flag": "os.open(path, 1 << 30 | os.O_TRUNC)",
        "by path": "os.truncate(path, 0)",
        "by path, natively": "call(76, path, 0)",
        "by openat2": "call(437, -100, path, struct.pack('QQQ', os.O_TRUNC, 0, 0), 24)",
        "by creat": "call(85, path, 0o644)",
        "punch a hole": "call(285, os.open(path, os.O_RDONLY), 3, 0, 1)",
    },
    "rename": {
        "away": "os.rename(path, target)",
        "into the scratch directory": "os.rename(path, 'taken')",
        "an own file over it": "os.replace(own, path)",
        "exchange with an own file": "call(316, -100, own, -100, path, 2)",
        "away, natively": "call(82, path, target)",
        "away, relative to a directory": "call(264, -100, path, -100, target)",
    },
    "link": {
        "hard, into the scratch directory": "os.link(path, 'linked')",
        "hard, beside it": "os.link(path, target)",
        "symbolic, in the scratch directory": "os.symlink(path, 'linked')",
        "symbolic, outside": "os.symlink(path, target)",
        "hard, natively": "call(86, path, target)",
        "hard, by descriptor": "call(265, os.open(path, os.O_RDONLY), '', -100, target, 0x1000)",
        "symbolic, natively": "call(266, path, -100, target)",
    },
    "chmod": {
        "by path": "os.chmod(path, 0)",
        "by descriptor": "os.fchmod(os.open(path, os.O_RDONLY), 0)",
        "by path, natively": "call(90, path, 0)",
        "relative to a directory": "call(268, -100, path, 0)",
        "relative to a directory, with flags": "call(452, -100, path, 0, 0)",
    },
    "chown": {
        "by path": "os.chown(path, 1, 1)",
        "by path, to whose it is": "os.chown(path, os.getuid(), os.getgid())",
        "by descriptor": "os.fchown(os.open(path, os.O_RDONLY), 1, 1)",
        "a link": "os.lchown(path, 1, 1)",
        "relative to a directory": "call(260, -100, path, 1, 1, 0)",
    },
    "utime": {
        "by path": "os.utime(path, (0, 0))",
        "to now": "os.utime(path)",
        "by descriptor": "os.utime(os.open(path, os.O_RDONLY), (0, 0))",
        "by the oldest call": "call(132, path, None)",
        "by the older call": "call(235, path, None)",
        "relative to a directory": "call(261, -100, path, None)",
    },
    "xattr": {
        "set": "os.setxattr(path, 'user.other', b'1')",
        "replace": "os.setxattr(path, 'user.mark', b'1')",
        "set by descriptor": "call(190, os.open(path, os.O_RDONLY), 'user.other', b'1', 1, 0)",
        "set on a link": "call(189, path, 'user.other', b'1', 1, 0)",
        "remove": "os.removexattr(path, 'user.mark')",
        "set, newest call": "call(463, -100, path, 0, 'user.other', bytes(16), 16)",
        "make it immutable": "fcntl.ioctl(os.open(path, os.O_RDONLY), 0x40086602, struct.pack('i', 16))",
        "read without a trace": "os.open(path, os.O_RDONLY | os.O_NOATIME)",
        "change its project": "fcntl.ioctl(os.open(path, os.O_RDONLY), 0x401C5820, bytes(28))",
    },
    "unlink": {
        "remove": "os.remove(path)",
        "remove natively": "call(87, path)",
        "remove relative to a directory": "call(263, -100, path, 0)",
        "remove with its folder": "shutil.rmtree(os.path.dirname(path))",
    },
}

ATTEMPTS: dict[str, dict[str, str | tuple[str, str]]] = {
    "create": {
        "open to write": "open(target, 'w')",
        "open exclusively": "open(target, 'x')",
        "open to read": "os.open(target, os.O_CREAT | os.O_RDONLY)",
        "open with mode 3": "os.open(target, os.O_CREAT | 3)",
        "open beside the scratch directory": "open(os.path.relpath(target), 'w')",
        "open relative to a folder": "os.open('new', os.O_CREAT | os.O_WRONLY, dir_fd=os.open(folder, os.O_PATH))",
        "creat": "call(85, target, 0o644)",
        "openat2": "call(437, -100, target, struct.pack('QQQ', os.O_CREAT | os.O_WRONLY, 0o644, 0), 24)",
        "an unnamed file": "os.open(folder, os.O_TMPFILE | os.O_RDWR)",
        "an unnamed file of its own": "os.open('.', os.O_TMPFILE | os.O_RDWR)",
        "a folder": "os.mkdir(target)",
        "a folder of its own": "os.mkdir('sub')",
        "a folder, natively": "call(83, target, 0o755)",
        "a folder relative to another": "call(258, -100, target, 0o755)",
        "a pipe": "os.mkfifo(target)",
        "a file in shared memory": "open('/dev/shm/stepladder-attack', 'w')",
        "a file of the temporary folder": "open('/tmp/stepladder-attack', 'w')",
        "a file of the system": "open('/etc/stepladder-attack', 'w')",
        "a module": "open(os.path.join(os.path.dirname(library), 'new.py'), 'w')",
        "a control group": "os.mkdir('/sys/fs/cgroup/stepladder-attack')",
    },
    "device nodes": {
        "a character device": "os.mknod(target, stat.S_IFCHR | 0o666, os.makedev(1, 3))",
        "a block device of its own": "os.mknod('node', stat.S_IFBLK | 0o666, os.makedev(254, 0))",
        "a plain node": "os.mknod(target, stat.S_IFREG | 0o666)",
        "a white node in the place of a renamed file": "call(316, -100, own, -100, 'renamed', 4)",
        "a plain node of its own": "os.mknod('node', stat.S_IFREG | 0o666)",
        "a pipe of its own": "os.mkfifo('node')",
        "relative to a directory": "call(259, -100, target, stat.S_IFCHR | 0o666, 259)",
        "open the memory": ("open('/dev/mem', 'rb')", "OSError"),
        "open the kernel's messages": "open('/dev/kmsg', 'rb')",
        "open the terminal": "open('/dev/tty', 'r+b', buffering=0)",
        "open a new terminal": "os.open('/dev/ptmx', os.O_RDWR)",
        "open the source of zeros": "open('/dev/zero', 'rb')",
        "write to the source of randomness": "open('/dev/urandom', 'wb')",
    },
    "network": {
        "TCP": "socket.create_connection(('127.0.0.1', port))",
        "UDP": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', port))",
        "TCP, version 6": "socket.socket(socket.AF_INET6, socket.SOCK_STREAM)",
        "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "packets": "socket.socket(17, socket.SOCK_RAW)",
        "Unix": "socket.socket(socket.AF_UNIX).connect(target)",
        "Unix, abstract": "socket.socket(socket.AF_UNIX).connect('\\0stepladder')",
        "a pair": "socket.socketpair()",
        "the kernel's configuration": "socket.socket(16, socket.SOCK_RAW, 0)",
        "the kernel's ciphers": "socket.socket(38, socket.SOCK_SEQPACKET)",
        "virtual machines": "socket.socket(40, socket.SOCK_STREAM)",
        "natively": "call(41, 2, 1, 0)",
        "by the other calling convention": "call(0x40000029, 2, 1, 0)",
        "listen": "socket.create_server(('127.0.0.1', 0))",
        "look up a name": ("socket.getaddrinfo('localhost', 80)", "OSError"),
        "connect its input": "call(42, 0, struct.pack('HH12x', 2, 80), 16)",
        "bind its input": "call(49, 0, struct.pack('HH12x', 2, 80), 16)",
        "send on its input": "call(44, 0, b'x', 1, 0, None, 0)",
        "send many on its input": "call(307, 0, bytes(64), 1, 0)",
        "receive many on its input": "call(299, 0, bytes(64), 1, 0, None)",
        "receive descriptors on its input": "call(47, 0, bytes(56), 0)",
        "ask for options of its input": "call(55, 0, 1, 17, bytes(12), struct.pack('i', 12))",
        "ask for the other end of its input": "call(52, 0, bytes(110), struct.pack('i', 110))",
        "listen on its input": "call(50, 0, 1)",
        "accept on its input": "call(43, 0, None, None)",
        "send descriptors on its input": "call(46, 0, bytes(56), 0)",
        "receive on its input": "call(45, 0, bytes(1), 1, 0, None, None)",
        "set options of its input": "call(54, 0, 1, 2, bytes(4), 4)",
        "shut its input": "call(48, 0, 2)",
    },
    "processes": {
        "fork": "os.fork()",
        "fork natively": "call(57)",
        "fork by the other calling convention": "call(0x40000039)",
        "vfork": "call(58)",
        "clone": "call(56, 17, 0, 0, 0, 0)",
        "clone, newest call": "call(435, bytes(88), 88)",
        "clone a thread": "call(56, 0x10F00, 0, 0, 0, 0)",
        "a thread": ("threading.Thread(target=print).start()", "RuntimeError"),
        "a program": "subprocess.run(['touch', target])",
        "a program by the shell": ("assert os.system('touch ' + target) == 0", "AssertionError"),
        "spawn": "os.posix_spawn('/bin/touch', ['touch', target], {})",
        "become a program": "os.execv('/bin/touch', ['touch', target])",
        "become a program by descriptor": "call(322, os.open(library, os.O_RDONLY), '', None, None, 0x1000)",
        "become a program by the other calling convention": "call(0x40000208, '/bin/true', None, None)",
        "lead a session": "os.setsid()",
        "change its group": "os.setpgid(0, parent)",
        "become another user": "os.setuid(1)",
        "become root": "os.setresuid(0, 0, 0)",
        "change its groups": "os.setgroups([0])",
        "trace a process": "call(101, 16, bystander, 0, 0)",
        "be traced": "call(101, 0, 0, 0, 0)",
        "read the memory of a process": "call(310, bystander, None, 0, None, 0, 0)",
        "write the memory of a process": "call(311, bystander, None, 0, None, 0, 0)",
        "compare processes": "call(312, parent, bystander, 0, 0, 0)",
        "hold a process": "call(434, bystander, 0)",
        "take a descriptor of a process": "call(438, 0, 1, 0)",
        "wait for a process": "call(61, -1, None, 0, None)",
        "move its working directory": "os.rename(os.getcwd(), target)",
        "remove its working directory": "call(263, -100, os.getcwd(), 0x200)",
        "signal its own group": "os.kill(-os.getpid(), 9)",
        "be nicer": "os.nice(1)",
        "change the priority of a process": "os.setpriority(os.PRIO_PROCESS, bystander, 19)",
        "change its scheduling": "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))",
        "change the scheduling of a process": "os.sched_setscheduler(bystander, os.SCHED_BATCH, os.sched_param(0))",
        "bind a process to a processor": "os.sched_setaffinity(bystander, {0})",
        "change the disk priority of a process": "call(251, 1, bystander, 0)",
        "change its limits": ("resource.setrlimit(resource.RLIMIT_NOFILE, (10, 10))", "ValueError"),
        "change its limits natively": "call(160, 7, struct.pack('QQ', 10, 10))",
        "change the limits of a process": "resource.prlimit(bystander, resource.RLIMIT_CPU, (1, 1))",
        "get namespaces": "call(272, 0x10000000)",
        "get a mount namespace": "call(272, 0x00020000)",
        "enter a namespace": "call(308, 0, 0)",
        "change its root": "os.chroot('.')",
        "change its working directory": "os.chdir('/')",
        "change its working directory by descriptor": "os.fchdir(os.open(os.path.dirname(library), os.O_RDONLY))",
        "get capabilities": "call(126, struct.pack('Ii', 0x20080522, 0), b'\\xff' * 24)",
        "outlive its parent": "call(157, 1, 0, 0, 0, 0)",
        "have undumpable memory": "call(157, 4, 0, 0, 0, 0)",
        "have memory of its own layout": "call(157, 35, 1, 0, 0, 0)",
        "be traced by anyone": "call(157, 0x59616D61, -1, 0, 0, 0)",
        "adopt orphans": "call(157, 36, 1, 0, 0, 0)",
        "answer its own system calls": "call(157, 59, 1, 0, 0, 0)",
        "share the memory of a process": "call(435, struct.pack('QQQQQQQQ', 0x100, *bytes(7)), 64)",
        "become a program in memory": "call(322, 1, '', None, None, 0x1000)",
        "advise about the memory of a dead process": "call(448, 0, 0)",
        "own files as another user": "call(122, 0)",
        "own files as another group": "call(123, 0)",
        "become another group": "os.setgid(1)",
        "become two users": "call(113, 0, 1)",
        "ask for the group of the parent": "os.getpgid(parent)",
        "ask for the session of the parent": "os.getsid(parent)",
        "change when memory is short": "open('/proc/self/oom_score_adj', 'w')",
        "change its name": "open('/proc/self/comm', 'w')",
        "change its security attributes": "open('/proc/self/attr/current', 'w')",
        "change its personality": "call(135, 0x0040000)",
        "change the mask of modes": "call(95, 0)",
    },
    "signals": {
        "kill the parent": "os.kill(parent, 9)",
        "kill the supervisor": "os.kill(os.getppid(), 9)",
        "stop the supervisor": "os.kill(os.getppid(), 19)",
        "kill a thread of the supervisor": "call(234, os.getppid(), os.getppid(), 9)",
        "queue a signal for the supervisor": "call(129, os.getppid(), 10, bytes(128))",
        "kill the parent's group": "os.killpg(parent, 9)",
        "kill a group below 0": "call(62, -parent, 9)",
        "own its output for a group": "call(72, 1, 15, struct.pack('ii', 2, parent))",
        "choose its ends by a descriptor": "call(424, 1, 9, None, 0)",
        "wait with a descriptor": "call(282, -1, bytes(8), 8)",
        "kill a process": "os.kill(bystander, 9)",
        "ask whether a process is there": "os.kill(bystander, 0)",
        "kill its group": "os.kill(0, 9)",
        "kill all": "os.kill(-1, 9)",
        "kill a group": "os.killpg(bystander, 9)",
        "kill a thread": "call(200, bystander, 9)",
        "kill a thread of a group": "call(234, bystander, bystander, 9)",
        "queue a signal": "call(129, bystander, 9, bytes(128))",
        "queue a signal for a thread": "call(297, bystander, bystander, 9, bytes(128))",
        "signal by descriptor": "call(424, 0, 9, None, 0)",
        "by the other calling convention": "call(0x4000003E, bystander, 9)",
        "own its output for a process": "fcntl.fcntl(1, fcntl.F_SETOWN, parent)",
        "choose the signal of its output": "fcntl.fcntl(1, 10, 9)",
        "have its output send signals": "fcntl.fcntl(1, fcntl.F_SETFL, os.O_ASYNC)",
        "have its output send signals, by ioctl": "fcntl.ioctl(1, 0x5452, struct.pack('i', 1))",
        "have folders send signals": "fcntl.fcntl(os.open('.', os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_CREATE)",
        "a timer": ("signal.setitimer(signal.ITIMER_REAL, 1)", "OSError"),
        "an alarm": "call(37, 1)",
        "a timer of the system": "call(222, 0, None, bytes(4))",
        "a timer's descriptor": "call(283, 0, 0)",
        "a signal's descriptor": "call(289, -1, bytes(8), 8, 0)",
    },
    "ipc": {
        "shared memory": "call(29, 1, 4096, 0o1666)",
        "remove shared memory": "call(31, 0, 0, None)",
        "use semaphores": "call(65, 0, bytes(6), 1)",
        "remove semaphores": "call(66, 0, 0, 0)",
        "send a message": "call(69, 0, bytes(16), 8, 0)",
        "read a message": "call(70, 0, bytes(16), 8, 0, 0)",
        "remove messages": "call(71, 0, 0, None)",
        "send to a message queue": "call(242, 0, b'x', 1, 0, None)",
        "be told of a message queue": "call(244, 0, None)",
        "a flood of watches": "call(254, 1, '.', 0xFFF)",
        "a flood of watches of all": "call(301, 1, 1, 0xFFF, -100, '.')",
        "an event, oldest call": "call(284, 0)",
        "move pages into a pipe": "call(278, 1, struct.pack('QQ', 0, 0), 1, 0)",
        "double a pipe": "call(276, 1, 1, 1, 0)",
        "what another left in shared memory": "os.listdir('/dev/shm')",
        "a queue by name": ("open('/dev/mqueue/stepladder', 'w')", "OSError"),
        "attach shared memory": "call(30, 0, None, 0)",
        "semaphores": "call(64, 1, 1, 0o1666)",
        "messages": "call(68, 1, 0o1666)",
        "a message queue": "call(240, 'stepladder', os.O_CREAT, 0o666, None)",
        "remove a message queue": "call(241, 'stepladder')",
        "shared memory by name": "__import__('_posixshmem').shm_open('/stepladder', os.O_CREAT | os.O_RDWR, 0o600)",
        "a pipe": "os.pipe()",
        "a pipe natively": "call(22, bytes(8))",
        "a larger pipe": "fcntl.fcntl(1, 1031, 1 << 20)",
        "an event": "call(290, 0, 0)",
        "a key": "call(248, 'user', 'stepladder', b'x', 1, -3)",
        "ask for a key": "call(249, 'user', 'stepladder', None, -3)",
        "the keyring": "call(250, 0, -3, 1)",
        "watch a file": "call(294, 0)",
        "watch all files": "call(300, 0, 0)",
        "poll by descriptor": "call(291, 0)",
    },
    "memory": {
        "a file in memory": "os.memfd_create('a')",
        "a file in memory that may not be run": "call(319, 'a', 8)",
        "a file in memory of huge pages": "call(319, 'a', 4)",
        "seal a file": "fcntl.fcntl(os.open(own, os.O_RDWR), 1033, 1)",
        "keep pages, newer call": "call(325, 0, 4096, 0)",
        "bind memory to a place": "call(238, 2, None, 0)",
        "a key for pages": "call(330, 0, 0)",
        "a second stack": "call(453, 0, 4096, 1)",
        "a file in memory, natively": "call(319, 'a', 0)",
        "a secret file in memory": "call(447, 0)",
        "keep pages": "call(149, 0, 4096)",
        "keep all pages": "call(151, 1)",
        "give up a page of the machine": "call(28, ctypes.addressof(ctypes.create_string_buffer(1)) & ~4095, 4096, 100)",
        "take a page of the machine offline": "call(28, ctypes.addressof(ctypes.create_string_buffer(1)) & ~4095, 4096, 101)",
        "remove pages of a file": "call(28, ctypes.addressof(ctypes.create_string_buffer(1)) & ~4095, 4096, 9)",
        "advise a process": "call(440, 0, None, 0, 4, 0)",
        "handle page faults": "call(323, 0)",
        "move pages of a process": "call(279, bystander, 0, None, None, None, 0)",
        "migrate a process": "call(256, bystander, 0, None, None)",
        "bind memory": "call(237, 0, 0, 0, None, 0, 0)",
        "swap": "call(167, secret, 0)",
        "map a file in another order": "call(216, 0, 4096, 0, 0, 0)",
        "locked pages": ("mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x2000)", "OSError"),
        "16 GiB": ("bytearray(1 << 34)", "MemoryError"),
        "16 GiB, shared": ("mmap.mmap(-1, 1 << 34)", "OSError"),
        "a mapping that a file lets grow": ("mmap.mmap(os.open(own, os.O_RDWR), 1).resize(1 << 30)", "ValueError"),
    },
    "reading secrets": {
        "a file": "open(secret)",
        "a file, by way of its own root": "open('/proc/thread-self/root' + secret)",
        "memory of its threads": "open('/proc/thread-self/mem', 'r+b')",
        "memory of a task": "open(f'/proc/self/task/{os.getpid()}/mem', 'rb')",
        "the status of the supervisor": "open(f'/proc/{os.getppid()}/status')",
        "a mount": "call(457, bytes(24), bytes(512), 512, 0)",
        "all mounts": "call(458, bytes(24), bytes(512), 64, 0)",
        "what of a file is in memory": "call(451, 1, bytes(16), bytes(40), 0)",
        "whether pages are in memory": "call(27, 0, 4096, bytes(1))",
        "a file, as a place": "os.open(secret, os.O_PATH)",
        "a file, with mode 3": "os.open(secret, 3)",
        "a file beneath the root of a process": "open('/proc/self/root' + secret)",
        "a file beside the scratch directory": "open(os.path.relpath(secret))",
        "a file by handle": "call(303, -100, secret, bytes(128), bytes(4), 0)",
        "open a file by handle": "call(304, 0, bytes(128), 0)",
        "an attribute of a file": "os.getxattr(secret, 'user.mark')",
        "the attributes of a file": "os.listxattr(secret)",
        "a folder": "os.listdir(folder)",
        "the root": "os.listdir('/')",
        "the temporary folder": "os.listdir('..')",
        "users": "open('/etc/passwd')",
        "passwords": "open('/etc/shadow')",
        "the name of the machine": "open('/etc/hostname')",
        "homes": "os.listdir('/home')",
        "variables": ("os.environ['STEPLADDER_SECRET']", "KeyError"),
        "variables of the parent": "open(f'/proc/{parent}/environ', 'rb')",
        "memory of the parent": "open(f'/proc/{parent}/mem', 'rb')",
        "the command of a process": "open(f'/proc/{bystander}/cmdline')",
        "the supervisor's memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
        "the supervisor's socket": "os.readlink(f'/proc/{os.getppid()}/fd/0')",
        "the working directory of a process": "os.readlink(f'/proc/{bystander}/cwd')",
        "the program of a process": "os.readlink(f'/proc/{bystander}/exe')",
        "its own memory": "open('/proc/self/mem', 'r+b')",
        "its own mappings": "open('/proc/self/maps')",
        "its own descriptors": "os.listdir('/proc/self/fd')",
        "mounts": "open('/proc/mounts')",
        "processes": "os.listdir('/proc')",
        "the kernel's messages": "call(103, 3, bytes(64), 64)",
        "the kernel's symbols": "open('/proc/kallsyms')",
        "the kernel's settings": "open('/proc/sys/kernel/hostname')",
        "a tree of files": "call(428, -100, secret, 0)",
        "hidden objects": "__import__('gc').get_objects()",
        "referrers": "__import__('gc').get_referrers(None)",
        "referents": "__import__('gc').get_referents(sys._getframe())",
    },
    "time": {
        "set the clock": "call(164, bytes(16), None)",
        "set a clock": "call(227, 0, bytes(16))",
        "adjust the clock": "call(159, bytes(208))",
        "adjust a clock": "call(305, 0, bytes(208))",
        "a higher limit of CPU time": ("resource.setrlimit(resource.RLIMIT_CPU, (1000, 1000))", "ValueError"),
    },
    "kernel interfaces": {
        "bpf": "call(321, 0, bytes(128), 128)",
        "perf": "call(298, bytes(128), 0, -1, -1, 0)",
        "io_uring": "call(425, 1, bytes(120))",
        "register io_uring": "call(427, 0, 0, None, 0)",
        "asynchronous calls": "call(206, 1, bytes(8))",
        "submit asynchronous calls": "call(209, 0, 1, None)",
        "freeze a file system": "fcntl.ioctl(os.open('.', os.O_RDONLY), 0xC0045877, 0)",
        "trim a file system": "fcntl.ioctl(os.open('.', os.O_RDONLY), 0xC0185879, bytes(24))",
        "merge equal parts of files": "fcntl.ioctl(os.open(own, os.O_RDWR), 0xC0189436, bytes(56))",
        "an encrypted folder": "fcntl.ioctl(os.open('.', os.O_RDONLY), 0x800C6613, bytes(12))",
        "the size of the terminal": "fcntl.ioctl(1, 0x5414, bytes(8))",
        "the attributes of the terminal": "fcntl.ioctl(1, 0x5402, bytes(60))",
        "lock a range of an own file for its description": "fcntl.fcntl(os.open(own, os.O_RDWR), 37, bytes(32))",
        "hint how long a file lives": "fcntl.fcntl(os.open(own, os.O_RDWR), 1036, bytes(8))",
        "write one file system to disk": "call(306, 1)",
        "write a part of a file to disk": "call(277, 1, 0, 0, 0)",
        "read a file ahead": "call(187, 0, 0, 4096)",
        "start a file system": "call(432, 0, 0, 0)",
        "pick a file system": "call(433, -100, '.', 0)",
        "quotas by descriptor": "call(443, 0, 0, 0, None)",
        "stop swapping": "call(168, secret)",
        "restrict itself again": "call(446, 0, 0)",
        "add a rule": "call(445, 0, 1, bytes(16), 0)",
        "modules of security": "call(461, bytes(8), bytes(4), 0)",
        "its own security": "call(459, 100, bytes(32), bytes(4), 0)",
        "wait on many words": "call(449, bytes(24), 1, 0, None, 1)",
        "a library by the oldest call": "call(134, library)",
        "what a crash starts": "open('/proc/sys/kernel/core_pattern', 'w')",
        "the emergency key": ("open('/proc/sysrq-trigger', 'w')", "OSError"),
        "the power of the machine": "open('/sys/power/state', 'w')",
        "the kernel's tracing": "os.listdir('/sys/kernel/tracing')",
        "enter io_uring": "call(426, 0, 1, 0, 0, None, 0)",
        "load a module": "call(175, bytes(8), 8, '')",
        "load a module by descriptor": "call(313, 0, '', 0)",
        "delete a module": "call(176, 'x', 0)",
        "load a kernel": "call(246, 0, 0, None, 0)",
        "load a kernel by descriptor": "call(320, 0, 0, 0, None, 0)",
        "reboot": "call(169, 0, 0, 0, None)",
        "name the machine": "call(170, 'x', 1)",
        "name the domain": "call(171, 'x', 1)",
        "mount": "call(165, 'none', folder, 'tmpfs', 0, None)",
        "unmount": "call(166, '/proc', 2)",
        "open a file system": "call(430, 'tmpfs', 0)",
        "move a mount": "call(429, 0, '', 0, '', 0)",
        "change a mount": "call(442, -100, folder, 0, bytes(32), 32)",
        "change the root of all": "call(155, '.', '.')",
        "quotas": "call(179, 0, None, 0, None)",
        "accounting": "call(163, target)",
        "ports": "call(173, 0, 1, 1)",
        "all ports": "call(172, 3)",
        "segments": "call(154, 1, bytes(16), 16)",
        "hang up the terminal": "call(153)",
        "type into the terminal": "fcntl.ioctl(1, 0x5412, b'x')",
        "take a terminal": "fcntl.ioctl(1, 0x540E, 0)",
        "paste into the terminal": "fcntl.ioctl(1, 0x541C, b'\\x03')",
        "unblock its output": "fcntl.ioctl(1, 0x5421, struct.pack('i', 1))",
        "another filter": "call(317, 1, 0, bytes(16))",
        "another filter by prctl": "call(157, 22, 2, bytes(16), 0, 0)",
        "new privileges": "call(157, 38, 0, 0, 0, 0)",
        "another ruleset": "call(444, bytes(8), 8, 0)",
        "attributes of its security module": "call(460, 100, bytes(32), 32, 0)",
        "write all files to disk": "call(162)",
        "an unknown call": "call(1000)",
        "a negative call": "call(-1)",
        "trace lines": "sys.settrace(lambda *_: None)",
        "trace lines, with another error in the place of a refusal": (
            "import builtins\nkept = builtins.PermissionError\nbuiltins.PermissionError = lambda *_: None\n"
            "try:\n    sys.settrace(lambda *_: None)\nfinally:\n    builtins.PermissionError = kept",
            "TypeError",
        ),
        "trace lines of all threads": ("getattr(sys, '_settraceallthreads', sys.settrace)(lambda *_: None)", "PermissionError"),
    },
}

_HOLD = "held = []\nfor i in range(400):\n    {}"
RUNS: dict[str, dict[str, tuple[str, str]]] = {
    "verdict": {
        "exit": ("import sys\nsys.exit()", "failed"),
        "exit with 0": ("import sys\nsys.exit(0)\nassert False", "failed"),
        "exit with 0 at the end": ("x = 1\nraise SystemExit(0)", "failed"),
        "exit with a text": ("raise SystemExit('done')", "failed"),
        "exit from a function": (
            "import sys\ndef f():\n    try:\n        sys.exit(0)\n    finally:\n        pass\nf()\nassert False",
            "failed",
        ),
        "exit by a subclass": ("class Done(SystemExit):\n    code = 0\nraise Done", "failed"),
        "exit at once": ("import os\nos._exit(0)", "failed"),
        "exit natively": ("import ctypes\nctypes.CDLL(None).exit(0)", "failed"),
        "exit by a system call": ("import ctypes\nctypes.CDLL(None).syscall(231, 0)", "failed"),
        "exit by a handler": ("import atexit, os\natexit.register(os._exit, 0)\nassert False", "failed"),
        "exit after a handler": ("import atexit, os\natexit.register(os._exit, 0)", "failed"),
        "exit from a handler": ("import atexit, sys\natexit.register(sys.exit, 0)", "failed"),
        "an error in a handler": ("import atexit\natexit.register(lambda: 1 / 0)", "failed"),
        "exit by a signal": ("import os, signal\nsignal.signal(10, lambda *_: os._exit(0))\nos.kill(os.getpid(), 10)", "failed"),
        "exit from a finaliser": ("import os\nclass A:\n    def __del__(self):\n        os._exit(0)\na = A()\nassert False", "failed"),
        "exit from a traceback": ("import os, traceback\ntraceback.print_exc = lambda *_, **__: os._exit(0)\nassert False", "failed"),
        "exit from a hook": ("import os, sys\nsys.excepthook = sys.__excepthook__ = lambda *_: os._exit(0)\nassert False", "failed"),
        "exit from its output": (
            "import os, sys\nclass A:\n    def __getattr__(self, _):\n        os._exit(0)\nsys.stdout = sys.stderr = A()\nassert False",
            "failed",
        ),
        "exit by an error's text": ("import os\nclass A(Exception):\n    def __str__(self):\n        os._exit(0)\nraise A", "failed"),
        "exit patched to nothing": ("import os, sys\nos._exit = sys.exit = exit = lambda *_: None\nassert False", "failed"),
        "builtins replaced": ("import builtins\nbuiltins.exec = builtins.compile = lambda *_: None\nassert False", "failed"),
        "errors replaced": ("import builtins\nbuiltins.BaseException = builtins.AssertionError = int\nassert False", "failed"),
        "an error that no one catches": ("raise BaseException", "failed"),
        "an end of a generator": ("def g():\n    yield 1\n    raise GeneratorExit\nlist(g())", "failed"),
        "an interrupt": ("raise KeyboardInterrupt", "failed"),
        "a stop": ("raise StopIteration", "failed"),
        "closed output": ("import os\nos.close(1)\nos.close(2)\nos._exit(0)", "failed"),
        "closed descriptors": (
            "import os\nfor i in range(64):\n    try:\n        os.close(i)\n    except OSError:\n        pass",
            "failed",
        ),
        "texts on every descriptor": (
            "import os\nfor i in range(64):\n    try:\n        os.write(i, b'R' + bytes(20))\n"
            "    except OSError:\n        pass\nos._exit(0)",
            "failed",
        ),
        "what every descriptor holds": (
            "import os\nfound = b''\nfor i in range(64):\n    try:\n        found += os.read(i, 99)\n    except OSError:\n        pass\n"
            "os.write(1, found)\nos._exit(0)",
            "failed",
        ),
        "what every frame holds": (
            "import os, sys\nframe = sys._getframe()\nwhile frame:\n"
            "    for value in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
            "        if isinstance(value, bytes):\n            os.write(1, value[-16:])\n    frame = frame.f_back\nos._exit(0)",
            "failed",
        ),
        "what every module holds": (
            "import os, sys\nfor module in list(sys.modules.values()):\n    for value in list(vars(module).values()):\n"
            "        if isinstance(value, bytes):\n            os.write(1, value[-16:])\nos._exit(0)",
            "failed",
        ),
        "the runner called again": ("import sys\nsys.modules['__main__'].run('x = 1')\nassert False", "failed"),
        "the runner's end called": ("import os, sys\nos.write(1, sys.modules['__main__']._finished(None))\nos._exit(0)", "failed"),
        "the runner's names replaced": (
            "import os, sys\nmain = sys.modules['__main__']\nmain._report = main._finished = lambda *_: b''\nassert False",
            "failed",
        ),
        "the runner's variables replaced": (
            "import os, sys\nsys._getframe(1).f_locals.update(leave=print, write=print, read=print)\nassert False",
            "failed",
        ),
        "the runner's code replaced": (
            "import sys\nmain = sys.modules['__main__']\nmain.refuse_tracing.__code__ = (lambda: None).__code__\nsys.settrace(print)",
            "failed",
        ),
        "lines skipped by tracing": (
            "import sys\ndef skip(frame, event, _):\n    if event == 'line' and frame.f_lineno == 8:\n        frame.f_lineno = 9\n"
            "    return skip\nsys._getframe().f_trace = skip\nsys.settrace(skip)\nassert not sys\nx = 1",
            "failed",
        ),
        "lines skipped by monitoring": (
            "import sys\ndef skip(code, line):\n    if line == 10:\n        frame = sys._getframe(1)\n        frame.f_trace = print\n"
            "        frame.f_lineno = 11\nsys.monitoring.use_tool_id(3, 'x')\n"
            "sys.monitoring.register_callback(3, sys.monitoring.events.LINE, skip)\n"
            "sys.monitoring.set_events(3, sys.monitoring.events.LINE)\nassert not sys\nx = 1",
            "failed",
        ),
        "exit from a second interpreter": (
            "try:\n    import _xxsubinterpreters as interpreters\nexcept ImportError:\n    import _interpreters as interpreters\n"
            "interpreters.run_string(interpreters.create(), 'import os; os._exit(0)')",
            "failed",
        ),
        "exit from an import": (
            "import os, sys\nsys.meta_path.insert(0, type('', (), {'find_spec': staticmethod(lambda *_: os._exit(0))}))\n"
            "import nothing_here",
            "failed",
        ),
        "exit from a weak reference": (
            "import os, weakref\nclass A:\n    pass\na = A()\nweakref.finalize(a, os._exit, 0)\nassert False",
            "failed",
        ),
        "exit natively from the interpreter": ("import ctypes\nctypes.pythonapi.Py_Exit(0)", "failed"),
        "an exit in a group of errors": ("raise BaseExceptionGroup('a', [SystemExit(0)])", "failed"),
        "an abort": ("import os\nos.abort()", "killed"),
        "a polite end": ("import os\nos.kill(os.getpid(), 15)", "killed"),
        "output moved to a file": ("import os\nos.dup2(os.open('a', os.O_CREAT | os.O_RDWR), 1)", "failed"),
        "lines skipped by the debugger": ("import bdb\nbdb.Bdb().set_trace()\nassert False", "failed"),
        "lines skipped by a profile": (
            "import sys\ndef skip(frame, event, _):\n    if frame.f_lineno == 7:\n        frame.f_lineno = 8\n"
            "sys.setprofile(skip)\nlen('')\nassert not len('')  or sys is None\nassert not sys\nx = 1",
            "failed",
        ),
        "what a second interpreter holds": (
            "import os\ntry:\n    import _xxsubinterpreters as interpreters\n"
            "except ImportError:\n    import _interpreters as interpreters\n"
            "interpreters.run_string(interpreters.create(), 'import gc, os, sys\\n'\n"
            "    'for each in gc.get_objects():\\n    for value in (each.values() if isinstance(each, dict) else ()):\\n'\n"
            "    '        if isinstance(value, bytes): os.write(1, value[-16:])\\n'\n"
            "    'sys.settrace(print)')\nos._exit(0)",
            "failed",
        ),
        "an end by the watchdog": ("import faulthandler, time\nfaulthandler.dump_traceback_later(0.1, exit=True)\ntime.sleep(2)", "failed"),
        "its input replaced": ("import os\nos.dup2(1, 0)\nos.write(0, bytes(16))\nassert False", "failed"),
        "a thread": ("import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()", "failed"),
        "texts on every descriptor that there can be": (
            "import os\nfor i in range(3, 2000):\n    try:\n        os.write(i, bytes(4))\n        os.close(i)\n"
            "    except OSError:\n        pass\nos._exit(0)",
            "failed",
        ),
        "a dead supervisor": ("import os\ntry:\n    os.kill(os.getppid(), 9)\nfinally:\n    os._exit(0)", "failed"),
        "an exit at the collection of garbage": (
            "import gc, os\ngc.callbacks.append(lambda *_: os._exit(0))\ngc.collect()\nassert False",
            "failed",
        ),
        "an exit by an audit hook": (
            "import os, sys\nsys.addaudithook(lambda event, _: os._exit(0) if event == 'open' else None)\nopen('a', 'w')\nassert False",
            "failed",
        ),
        "errors from an audit hook": (
            "import sys\ndef refuse(*_):\n    raise SystemExit(0)\nsys.addaudithook(refuse)\nopen('a', 'w')",
            "failed",
        ),
        "an exit by an unraisable error": (
            "import os, sys\nsys.unraisablehook = lambda *_: os._exit(0)\nclass A:\n    def __del__(self):\n        1 / 0\n"
            "A()\nassert False",
            "failed",
        ),
        "the runner's names cleared": ("import sys\nsys.modules['__main__'].__dict__.clear()\nassert False", "failed"),
        "no modules left": ("import sys\nsys.modules.clear()\nassert False", "failed"),
        "no room for calls": ("import sys\nsys.setrecursionlimit(60)\nassert False", "failed"),
        "an exit while it is compiled": ("import ast, os\neval(compile('__import__(\"os\")._exit(0)', 'a', 'eval'))", "failed"),
        "an exit through a comparison": (
            "import os\nclass A:\n    def __eq__(self, _):\n        os._exit(0)\nassert A() == 1",
            "failed",
        ),
        "a program in its place": ("import os\nos.execv('/bin/true', ['true'])", "failed"),
        "a crash that would leave its memory": (
            "import ctypes, signal\nsignal.signal(signal.SIGSEGV, signal.SIG_DFL)\nctypes.string_at(0)",
            "killed",
        ),
        "a signal that kills": ("import os\nos.kill(os.getpid(), 9)", "killed"),
        "a crash": ("import ctypes\nctypes.string_at(0)", "killed"),
        "endless recursion": ("def f():\n    f()\nf()", "failed"),
        "no Python": ("x = (", "failed"),
        "a null byte": ("x = 1\0", "failed"),
    },
    "disk": {
        "55 files of 15 MB, each deleted": (
            "import os\nheld = []\nfor i in range(55):\n    held.append(open('a', 'wb'))\n    os.unlink('a')\n"
            "    held[-1].write(bytes(15 << 20))\n    held[-1].flush()",
            "failed",
        ),
        "15 files of 15 MB": ("for i in range(15):\n    open(str(i), 'wb').write(bytes(15 << 20))", "failed"),
        "15 files, all made before they grow": (
            "files = [open(str(i), 'wb') for i in range(15)]\nfor file in files:\n    file.write(bytes(15 << 20))",
            "failed",
        ),
        "deleted files": (
            "import os\n"
            + _HOLD.format("held.append(open('a', 'wb'))\n    os.unlink('a')\n    os.write(held[-1].fileno(), bytes(2 << 20))"),
            "failed",
        ),
        "deleted files that are mapped": (
            "import mmap, os\n"
            + _HOLD.format(
                "file = os.open('a', os.O_CREAT | os.O_RDWR)\n    assert os.write(file, bytes(4 << 20)) == 4 << 20\n"
                "    held.append(mmap.mmap(file, 4096))\n    os.close(file)\n    os.unlink('a')"
            ),
            "failed",
        ),
        "deleted files that are mapped and closed": (
            "import ctypes, os\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
            + _HOLD.format(
                "file = os.open('a', os.O_CREAT | os.O_RDWR)\n    os.write(file, bytes(1 << 20))\n"
                "    assert libc.mmap(None, ctypes.c_size_t(4096), 1, 2, file, ctypes.c_long(0)) > 0\n"
                "    os.close(file)\n    os.unlink('a')"
            ),
            "failed",
        ),
        "deleted files with a shared mapping": (
            "import ctypes, os\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n"
            + _HOLD.format(
                "file = os.open('a', os.O_CREAT | os.O_RDWR)\n    os.ftruncate(file, 1 << 20)\n"
                "    assert libc.mmap(None, ctypes.c_size_t(4096), 3, 1, file, ctypes.c_long(0)) > 0\n"
                "    os.close(file)\n    os.unlink('a')"
            ),
            "failed",
        ),
        "a deleted file behind two descriptors": (
            "import os\n" + _HOLD.format("held.append(os.dup(os.open('a', os.O_CREAT | os.O_RDWR)))\n    os.unlink('a')"),
            "failed",
        ),
        "replaced files": (
            "import os\n" + _HOLD.format("held.append(open('a', 'wb'))\n    open('b', 'w').close()\n    os.rename('b', 'a')"),
            "failed",
        ),
        "many files": (_HOLD.format("open(str(i), 'w').close()"), "overfull"),
        "a huge file": ("with open('a', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 16))", "failed"),
        "a huge hole": ("with open('a', 'wb') as file:\n    file.truncate(1 << 30)", "failed"),
        "a huge file, ended by its signal": (
            "import signal\nsignal.signal(25, signal.SIG_DFL)\nopen('a', 'wb').write(bytes(1 << 25))",
            "overfull",
        ),
        "endless output": ("while True:\n    print('x' * 10000)", "overfull"),
    },
    "memory": {
        "slowly more": ("x = []\nwhile True:\n    x.append(bytearray(1 << 24))", "failed"),
        "shared mappings": (
            "import mmap\nx = []\nwhile True:\n    x.append(mmap.mmap(-1, 1 << 24))\n    x[-1].write(bytes(1 << 24))",
            "failed",
        ),
    },
    "reading secrets": {
        "inherited descriptors": (
            "import os\nfound = []\nfor i in range(3, 1000):\n    try:\n        found.append(os.fstat(i))\n"
            "    except OSError:\n        pass\nassert found",
            "failed",
        ),
    },
    "kernel interfaces": {
        "the 32-bit calling convention": (
            "import ctypes, mmap\ncode = mmap.mmap(-1, 4096, prot=7)\ncode.write(bytes.fromhex('b814000000cd80c3'))\n"
            "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()",
            "killed",
        ),
    },
    "time": {
        "compute for ever": ("while True:\n    pass", "timeout"),
        "compute for ever in C": ("9**9**9**9", "timeout"),
        "ignore the deadline": ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass", "killed"),
        "sleep long": ("import time\ntime.sleep(1000)", "timeout"),
        "sleep often": ("import time\nwhile True:\n    time.sleep(0.5)", "timeout"),
        "sleep very often": ("import time\nwhile True:\n    time.sleep(0.001)", "timeout"),
        "compute a tenth of the time": (
            "import time\nwhile True:\n    time.sleep(0.045)\n    end = time.perf_counter() + 0.005\n"
            "    while time.perf_counter() < end:\n        pass",
            "timeout",
        ),
        "sleep until a far day": ("import time\nimport signal\nsignal.sigtimedwait([10], 1000)", "failed"),
        "wait for a lock": ("import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()", "timeout"),
        "wait for a descriptor": ("import select\nselect.poll().poll()", "timeout"),
        "stop": ("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
        "sleep instead of failing": ("import time\ntry:\n    assert False\nexcept AssertionError:\n    time.sleep(1000)", "timeout"),
    },
}
"""A second is the deadline of the kind ``time``."""


def attempts() -> dict[str, dict[str, tuple[str, str]]]:
    """Return every attempt by kind and name: its code, and the error it must raise."""
    table: dict[str, dict[str, tuple[str, str]]] = {}
    for kind, tries in ON_FILES.items():
        for name, tried in tries.items():
            for place in ("secret", "library"):
                code, error = tried if isinstance(tried, tuple) else (tried, "PermissionError")
                table.setdefault(kind, {})[f"{name}: {place}"] = (f"path = {place}\n{code}", error)
    for kind, tries in ATTEMPTS.items():
        for name, tried in tries.items():
            table.setdefault(kind, {})[name] = tried if isinstance(tried, tuple) else (tried, "PermissionError")
    return table
