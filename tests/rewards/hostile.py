"""Programs that try to get out of the sandbox. Each prints ESCAPED if it has done what it must not be able to do.

`{secret}` is a file with a secret, `{canary}` a path that must not appear, `{port}` a port that listens on the host,
`{parent}` the process id of the training process.
"""

from __future__ import annotations

PROGRAMS = {
    "reads a file of the user": "print(open({secret!r}).read()); print('ESCAPED')",
    "reads /etc/passwd": "open('/etc/passwd').read(); print('ESCAPED')",
    "reads /etc/shadow": "open('/etc/shadow').read(); print('ESCAPED')",
    "lists the home": "import os\nif set(os.listdir('/root')) - {{'.pyenv', '.local', '.venv'}}: print('ESCAPED')",
    "reads the environment": "import os\nif 'BURNISH_SECRET' in os.environ: print('ESCAPED')",
    "reads the environment of its parents": """
import glob
for path in glob.glob('/proc/*/environ'):
    if b'BURNISH_SECRET' in open(path, 'rb').read(): print('ESCAPED')
""",
    "finds processes": "import os\nif any(name.isdigit() for name in os.listdir('/proc')): print('ESCAPED')",
    "walks up": "open('../../../../../../../../etc/shadow').read(); print('ESCAPED')",
    "follows a link of its own": "import os; os.symlink({secret!r}, 'link'); open('link').read(); print('ESCAPED')",
    "goes through a descriptor": """
import os
for number in range(3, 256):
    try:
        os.fstat(number)
    except OSError:
        continue
    print('ESCAPED')
""",
    "writes beside itself": "open({canary!r}, 'w').write('x'); print('ESCAPED')",
    "writes to the root": "open('/canary', 'w').write('x'); print('ESCAPED')",
    "writes to a library": "import os; open(os.__file__, 'a').write('#'); print('ESCAPED')",
    "removes a library": "import os; os.unlink(os.__file__); print('ESCAPED')",
    "makes a library writable": "import os; os.chmod(os.__file__, 0o777); print('ESCAPED')",
    "writes to a device": "import os\nprint('ESCAPED' if os.path.exists('/dev/sda') or os.path.exists('/dev/mem') else '')",
    "makes a device": "import os, stat; os.mknod('disk', 0o600 | stat.S_IFBLK, os.makedev(8, 0)); print('ESCAPED')",
    "mounts": """
import ctypes
if ctypes.CDLL(None).mount(b'none', b'/sandbox', b'tmpfs', 0, None) == 0: print('ESCAPED')
""",
    "remounts": """
import ctypes, sys
for path in (b'/', b'/lib', b'/usr/lib', sys.base_prefix.encode()):
    if ctypes.CDLL(None).mount(b'none', path, None, 0x1000 | 32, None) == 0: print('ESCAPED')
""",
    "changes its root": "import os; os.mkdir('r'); os.chroot('r'); print('ESCAPED')",
    "unmounts": "import ctypes\nif ctypes.CDLL(None).umount2(b'/lib', 2) == 0: print('ESCAPED')",
    "becomes root": "import os; os.setuid(0); print('ESCAPED')",
    "is root": "import os\nif 0 in (os.getuid(), os.geteuid(), os.getgid()) or 0 in os.getgroups(): print('ESCAPED')",
    "has rights": """
import ctypes
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
sets = (ctypes.c_uint32 * 6)()
ctypes.CDLL(None).capget(header, sets)
if any(sets[i] for i in (0, 1, 3, 4)): print('ESCAPED')
""",
    "makes a setuid program": """
import os, shutil, sys
shutil.copy('/bin/sh', 'sh') if os.path.exists('/bin/sh') else open('sh', 'w').write('x')
os.chmod('sh', 0o4755)
if os.stat('sh').st_uid == 0: print('ESCAPED')
""",
    "reaches the host": "import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2); print('ESCAPED')",
    "reaches the network": "import socket; socket.create_connection(('1.1.1.1', 53), timeout=2); print('ESCAPED')",
    "sends a datagram": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('1.1.1.1', 53)); print('ESCAPED')",
    "has a network": "import socket\nif {{name for _, name in socket.if_nameindex()}} - {{'lo', 'tunl0', 'sit0'}} - {{n for _, n in socket.if_nameindex() if n.startswith(('ip', 'gre', 'erspan'))}}: print('ESCAPED')",
    "signals the training process": "import os; os.kill({parent}, 0); print('ESCAPED')",
    "signals everybody": "import os; os.kill(-1, 9)",
    "signals the first process": "import os, time; os.kill(1, 9); time.sleep(0.3); os.getppid() == 1 or print('ESCAPED')",
    "traces the first process": "import ctypes\nif ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0: print('ESCAPED')",
    "loads a module of the kernel": "import ctypes\nif ctypes.CDLL(None).syscall(175, b'x', 1, b'') == 0: print('ESCAPED')",
    "sets the clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0); print('ESCAPED')",
    "reboots": "import ctypes\nif ctypes.CDLL(None).reboot(0) == 0: print('ESCAPED')",
    "renames the host": "import socket; socket.sethostname('x'); print('ESCAPED')",
    "raises its limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (2**40, 2**40)); print('ESCAPED')",
    "enters another namespace": "import os; os.open('/proc/1/ns/mnt', os.O_RDONLY); print('ESCAPED')",
    "joins its friends": "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/docker.sock'); print('ESCAPED')",
}
# Programs that use up what there is: (program, what they are stopped by).
GREEDY = {
    "time": "while True: pass",
    "sleep": "import time; time.sleep(600)",
    "memory": "x = [bytearray(10**7) for _ in range(10**4)]; print('ESCAPED')",
    "forks": "import os, time\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        time.sleep(0.1)",
    "threads": "import threading, time\nfor _ in range(1000): threading.Thread(target=time.sleep, args=(600,)).start()",
    "disk": "for i in range(100): open(str(i), 'wb').write(bytes(2**20))\nprint('ESCAPED')",
    "inodes": "for i in range(10**5): open(str(i), 'w').close()\nprint('ESCAPED')",
    "one file": "f = open('x', 'wb')\nfor _ in range(10**3): f.write(bytes(2**20))\nprint('ESCAPED')",
    "output": "while True: print('x' * 1000)",
    "errors": "import sys\nwhile True: sys.stderr.write('x' * 1000)",
    "closed output": "import os, time; os.close(1); os.close(2); time.sleep(600)",
    "a child that stays": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
""",
    "no reader": "import os; os.close(0)\nwhile True: pass",
    "recursion": "def f(): f()\nimport sys; sys.setrecursionlimit(10**9); f()",
    "large number": "x = 9 ** 9 ** 9",
}
