#!/usr/bin/env python3
"""Checks demo-server on bare Linux: the protocol, and that each planted bug kills it with the right signal.

usage: check_native.py PATH-TO-DEMO-SERVER
"""

import atexit
import resource
import signal
import socket
import subprocess
import sys
import tempfile

BUGS = {
    "null-read": signal.SIGSEGV,
    "wild-write": signal.SIGSEGV,
    "heap-overflow": signal.SIGABRT,
    "double-free": signal.SIGABRT,
    "stack-smash": signal.SIGABRT,
    "div-zero": signal.SIGFPE,
    "assert": signal.SIGABRT,
    "abort": signal.SIGABRT,
    "jump-garbage": signal.SIGSEGV,
    "write-rodata": signal.SIGSEGV,
    "mess": signal.SIGSEGV,
}


class Server:
    def __init__(self, program, *options):
        self.process = subprocess.Popen(
            [program, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
        )
        atexit.register(self.process.kill)  # a failed check leaves no server behind
        self.where = self.process.stdout.readline().decode().removeprefix("listening on ").strip()

    def connect(self):
        if self.where.startswith("/"):
            client = socket.socket(socket.AF_UNIX)
            client.connect(self.where)
        else:
            client = socket.create_connection(("127.0.0.1", int(self.where)))
        client.settimeout(5)
        return client, client.makefile("rb")

    def end(self, sig=None):
        if sig:
            self.process.send_signal(sig)
        status = self.process.wait(5)
        self.process.stdout.close()
        self.process.stderr.close()
        return status


def expect(got, wanted):
    assert got == wanted, f"got {got!r}, wanted {wanted!r}"


def talk(client, requests, *replies):
    connection, lines = client
    connection.sendall(requests)
    for wanted in replies:
        expect(lines.readline(), wanted)


def check_protocol(program, *options):
    server = Server(program, *options)
    a, b = server.connect(), server.connect()
    talk(a, b"GET x\n", b"-ERR LOGIN first\n")
    talk(a, b"LOGIN alice\nSET x a b  c\nGET x\nAPPEND x d\nGET x\n", b"+HELLO alice\n", b"+OK\n", b"$a b  c\n", b":7\n", b"$a b  cd\n")
    talk(a, b"INCR n\r\nINCR n\nINCR x\n", b":1\n", b":2\n", b"-ERR not a number\n")
    talk(a, b"DEL x\nDEL x\nGET x\nKEYS\nKEYS n\nKEYS z\n", b":1\n", b":0\n", b"_\n", b":1\n", b":1\n", b":0\n")
    talk(a, b"WHOAMI\n", b"+name=alice commands=16 writes=5 history=16\n")
    talk(b, b"login bo", *[])
    talk(b, b"b\nwhoami\nhistory\n", b"+HELLO bob\n", b"+name=bob commands=2 writes=0 history=2\n", b"*3\n", b"$login bob\n", b"$whoami\n", b"$history\n")
    talk(a, b"INCR\nSET k\nNOPE\n", b"-ERR missing argument\n", b"-ERR missing argument\n", b"-ERR unknown command\n")
    # Replies far beyond the socket buffers, asked for before any is read.
    talk(a, b"SET big " + b"v" * 60000 + b"\n", b"+OK\n")
    for i in range(2, 18):
        talk(a, b"APPEND big " + b"v" * 60000 + b"\n", b":%d\n" % (60000 * i))
    talk(a, b"GET big\n" * 50, *[b"$" + b"v" * 1020000 + b"\n"] * 50)
    talk(a, b"APPEND big " + b"v" * 60000 + b"\n", b"-ERR value too large\n")
    talk(a, b"CHECK\n", b"+OK entries=2 sessions=2\n")
    talk(a, b"QUIT\n", b"+BYE\n", b"")
    for _ in range(100):  # the other worker sees the end of alice's session in its own time
        talk(b, b"STATS\n")
        stats = b[1].readline()
        if b"sessions=1 " in stats:
            break
    assert stats.startswith(b"+sessions=1 opened=2 "), stats
    for i in range(3000):
        talk(b, b"SET key%d %d\n" % (i, i), b"+OK\n")
    talk(b, b"CHECK\nKEYS key1\n", b"+OK entries=3002 sessions=1\n", b":1111\n")
    c = server.connect()
    talk(c, b"SET " + b"x" * 70000, b"-ERR line too long\n", b"")
    expect(server.end(signal.SIGTERM), 0)


def check_bugs(program, *options):
    server = Server(program, *options)
    client = server.connect()
    talk(client, b"CRASH list\n", b"*%d\n" % len(BUGS), *[b"$%s\n" % name.encode() for name in BUGS])
    talk(client, b"CRASH nothing\n", b"-ERR no such bug\n")
    expect(server.end(signal.SIGINT), 0)
    for name, sig in BUGS.items():
        server = Server(program, *options)
        others = [server.connect() for _ in range(3)]
        for i, other in enumerate(others):
            talk(other, b"LOGIN u%d\nSET k%d v\n" % (i, i), b"+HELLO u%d\n" % i, b"+OK\n")
        talk(others[0], b"SET ghost 1\nCRASH %s\n" % name.encode(), *[])
        status = server.end()
        assert status == -sig, f"{name}: {status}, wanted {-sig}"
    print(f"demo-server {' '.join(options)}: {len(BUGS)} bugs crash as they should")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for options in ([], ["-t", "4"], ["--unix", f"{folder}/socket"]):
            check_protocol(sys.argv[1], *options)
            check_bugs(sys.argv[1], *options)
