package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var _ = scenarios(false, map[string]func(p *trace){
	"Fifos":          fifos,
	"Sockets":        sockets,
	"Devices":        devices,
	"XattrMatrix":    xattrMatrix,
	"XattrSizes":     xattrSizes,
	"ACLMatrix":      aclMatrix,
	"ACLValues":      aclValues,
	"Locks":          locks,
	"SymlinkTargets": symlinkTargets,
	"Ioctls":         ioctls,
	"StatfsFields":   statfsFields,
})

// fifos opens fifos in all ways, sends bytes through, and looks at what stat says.
func fifos(p *trace) {
	path := p.at("fifo")
	must(p.t, unix.Mkfifo(path, 0o666))
	p.call(openClose(path, unix.O_WRONLY, 0), "writing without a reader")
	r, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	must(p.t, err)
	b := make([]byte, 100)
	n, err := unix.Read(r, b)
	p.call(err, "reading without a writer: %d", n)
	w, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	must(p.t, err)
	p.call(errOf(unix.Read(r, b)), "reading nothing")
	p.moved([]string{p.dir, path}, func() error { return errOf(unix.Write(w, []byte("through"))) }, "write")
	n, err = unix.Read(r, b)
	p.call(err, "read %q", b[:max(n, 0)])
	p.call(errOf(unix.Seek(r, 0, 0)), "seek")
	p.call(errOf(unix.Pread(r, b, 0)), "pread")
	p.call(unix.Ftruncate(w, 0), "ftruncate")
	p.call(unix.Truncate(path, 0), "truncate")
	p.call(unix.Fsync(w), "fsync")
	p.call(unix.Fallocate(w, 0, 0, 1), "fallocate")
	p.show(path)
	must(p.t, unix.Unlink(path)) // the open ends stay joined
	p.call(errOf(unix.Write(w, []byte("still"))), "write after unlink")
	n, err = unix.Read(r, b)
	p.call(err, "read %q", b[:max(n, 0)])
	unix.Close(w)
	n, err = unix.Read(r, b)
	p.call(err, "read at the end: %d", n)
	unix.Close(r)

	must(p.t, unix.Mkfifo(path, 0o666))
	must(p.t, unix.Link(path, path+"2"))
	got := make(chan string)
	go func() { b, err := os.ReadFile(path); got <- string(b) + errnoName(err) }()
	must(p.t, os.WriteFile(path+"2", []byte("blocking, by another name"), 0))
	p.log("%s", <-got)
}

// sockets has a real server on a unix socket of each type.
func sockets(p *trace) {
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_SEQPACKET} {
		socketServer(p, kind)
		p.clean()
	}
}

func socketServer(p *trace, kind int) {
	// sun_path has 108 bytes; a scenario's path is longer than that at times.
	var dirfd int
	dirfd, err := unix.Open(p.dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(p.t, err)
	defer unix.Close(dirfd)
	address := func(name string) unix.Sockaddr {
		return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dirfd, name)}
	}
	var fds []int
	socket := func() int {
		fd, err := unix.Socket(unix.AF_UNIX, kind, 0)
		must(p.t, err)
		fds = append(fds, fd)
		return fd
	}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	server := socket()
	p.moved([]string{p.dir}, func() error { return unix.Bind(server, address("s")) }, "bind")
	p.show(p.at("s"))
	p.call(unix.Bind(socket(), address("s")), "bind to a name there is")
	p.call(unix.Bind(socket(), address("none/s")), "bind below nothing")
	p.call(unix.Connect(socket(), address("s")), "connect before listen")
	p.call(unix.Listen(server, 5), "listen")
	client := socket()
	p.call(unix.Connect(client, address("s")), "connect")
	p.call(errOf(unix.Write(client, []byte("hello"))), "send")
	conn := server
	if kind != unix.SOCK_DGRAM {
		conn, _, err = unix.Accept(server)
		p.call(err, "accept")
		fds = append(fds, conn)
	}
	b := make([]byte, 10)
	n, err := unix.Read(conn, b)
	p.call(err, "receive %q", b[:max(n, 0)])
	p.call(openClose(p.at("s"), unix.O_RDWR, 0), "open")
	for _, perm := range []uint32{0o700, 0o707} {
		must(p.t, os.Chmod(p.at("s"), os.FileMode(perm)))
		other := socket()
		nobody.do(p.t, func() {
			p.call(unix.Connect(other, &unix.SockaddrUnix{Name: shortPath(dirfd, "s")}), "connect by nobody %o", perm)
		})
	}
	must(p.t, unix.Rename(p.at("s"), p.at("t")))
	p.call(unix.Connect(socket(), address("s")), "connect to the old name")
	p.call(unix.Connect(socket(), address("t")), "connect to the new name")
	must(p.t, unix.Link(p.at("t"), p.at("u")))
	p.call(unix.Connect(socket(), address("u")), "connect to a link")
	p.make("file", p.at("file"), 0o644, root)
	p.call(unix.Connect(socket(), address("file")), "connect to a file")
	unix.Close(server)
	fds[0] = -1
	p.call(unix.Connect(socket(), address("t")), "connect to a closed server")
	p.tree()
}

// shortPath is a path by a descriptor that any thread of this process may follow.
func shortPath(dirfd int, name string) string {
	return fmt.Sprintf("/proc/%d/fd/%d/%s", os.Getpid(), dirfd, name)
}

// devices uses device nodes.
func devices(p *trace) {
	for _, d := range []struct {
		kind         uint32
		major, minor uint32
	}{{unix.S_IFCHR, 1, 3}, {unix.S_IFCHR, 1, 5}, {unix.S_IFCHR, 240, 1}, {unix.S_IFBLK, 240, 3},
		{unix.S_IFCHR, 511, 1<<20 - 1},
		{unix.S_IFBLK, 4095, 255}, {unix.S_IFCHR, 0, 0}} {
		name := fmt.Sprintf("%o-%d-%d", d.kind, d.major, d.minor)
		err := unix.Mknod(p.at(name), d.kind|0o666, int(unix.Mkdev(d.major, d.minor)))
		p.call(err, "mknod %s", name)
		p.call(openClose(p.at(name), unix.O_RDWR, 0), "open %s", name)
		nobody.do(p.t, func() {
			p.call(openClose(p.at(name), unix.O_RDWR, 0), "open %s by nobody", name)
			p.call(unix.Mknod(p.at("nobodys"), d.kind|0o666, 0), "mknod by nobody")
		})
	}
	zeros := p.at("20000-1-5")
	p.call(onFD(zeros, unix.O_RDWR, func(fd int) error {
		b := []byte{1, 2, 3}
		n, err := unix.Read(fd, b)
		p.log("read %d %v", n, b)
		m, err2 := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
		if err2 == nil {
			err2 = unix.Munmap(m)
		}
		return errors.Join(err, err2)
	}), "zero device")
	p.call(unix.Truncate(zeros, 0), "truncate of a device")
	p.tree()
}

// xattrMatrix sets, reads, lists and removes attributes of all name spaces on all kinds of nodes as everybody.
func xattrMatrix(p *trace) {
	names := []string{"user.a", "user.", "user", "trusted.a", "trusted.", "security.a", "security.capability", "system.a",
		"system.posix_acl_access", "system.posix_acl_default", "other.a", "", "a", "user." + strings.Repeat("n", 250),
		"user." + strings.Repeat("n", 251), "user.a\xff\n"}
	for _, kind := range kinds {
		for _, perm := range []uint32{0o666, 0o444, 0o1666} {
			for _, u := range []user{root, nobody, other} {
				p.make(kind, p.at("x"), perm, nobody)
				var lines []string
				u.do(p.t, func() {
					for _, name := range names {
						line := fmt.Sprintf("%q of %s %o by %v:", tail(name), kind, perm, u)
						add := func(err error) { line += " " + errnoName(err) }
						add(errOf(unix.Lgetxattr(p.at("x"), name, nil)))
						add(unix.Lsetxattr(p.at("x"), name, []byte("v"), unix.XATTR_REPLACE))
						add(unix.Lsetxattr(p.at("x"), name, []byte("value"), unix.XATTR_CREATE))
						add(unix.Lsetxattr(p.at("x"), name, []byte("value"), unix.XATTR_CREATE))
						add(unix.Lsetxattr(p.at("x"), name, []byte("value"), unix.XATTR_CREATE|unix.XATTR_REPLACE))
						add(unix.Lsetxattr(p.at("x"), name, nil, 0))
						add(unix.Lsetxattr(p.at("x"), name, []byte("again"), 8))
						add(unix.Lsetxattr(p.at("x"), name, []byte("again"), 0))
						b := make([]byte, 100)
						n, err := unix.Lgetxattr(p.at("x"), name, b)
						line += fmt.Sprintf(" %q", b[:max(n, 0)])
						add(err)
						add(errOf(unix.Lgetxattr(p.at("x"), name, b[:2])))
						lines = append(lines, line)
					}
					lines = append(lines, fmt.Sprintf("list %q", p.xattrs(p.at("x"))))
				})
				lines = append(lines, fmt.Sprintf("root's list %q", p.xattrs(p.at("x"))))
				u.do(p.t, func() {
					for _, name := range names {
						once, again := unix.Lremovexattr(p.at("x"), name), unix.Lremovexattr(p.at("x"), name)
						lines = append(lines, fmt.Sprintf("remove %q: %s %s", tail(name), errnoName(once), errnoName(again)))
					}
				})
				for _, line := range lines {
					p.log("%s", line)
				}
				p.clean()
			}
		}
	}
}

// xattrs is the names of a file's attributes, in the order in which the file system lists them.
func (p *trace) xattrs(path string) []string {
	b := make([]byte, 70_000)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return []string{errnoName(err)}
	}
	return strings.Split(string(b[:n]), "\x00")
}

// xattrSizes sets values up to the largest, and more names than a list holds.
func xattrSizes(p *trace) {
	p.make("file", p.at("x"), 0o644, root)
	for _, size := range []int{0, 1, 4095, 4096, 65535, 65536, 65537} {
		for _, name := range []string{"user.big", "trusted.big", "security.big"} {
			p.call(unix.Setxattr(p.at("x"), name, make([]byte, size), 0), "%s of %d", name, size)
			n, err := unix.Getxattr(p.at("x"), name, make([]byte, 70_000))
			p.call(err, "%s has %d", name, n)
			p.call(errOf(unix.Getxattr(p.at("x"), name, make([]byte, 1))), "%s into one byte", name)
		}
	}
	p.call(errOf(unix.Listxattr(p.at("x"), make([]byte, 5))), "list into 5 bytes")
	n, err := unix.Listxattr(p.at("x"), nil)
	p.call(err, "list has %d", n)
	for i := range 400 {
		if err := unix.Setxattr(p.at("x"), fmt.Sprintf("trusted.%04d%s", i, strings.Repeat("n", 200)), []byte("v"), 0); err != nil {
			p.call(err, "name %d", i)
			break
		}
	}
	p.call(errOf(unix.Listxattr(p.at("x"), make([]byte, 65_536))), "list too long")
	p.call(unix.Removexattr(p.at("x"), fmt.Sprintf("trusted.%04d%s", 17, strings.Repeat("n", 200))), "remove one")
}

// aclMatrix sets ACLs, and has everybody try what they allow.
func aclMatrix(p *trace) {
	lists := map[string]string{
		"named user":      "u::rwx,u:65533:r-x,g::r-x,m::rwx,o::---",
		"named group":     "u::rw-,g::---,g:65532:rwx,m::r-x,o::---",
		"mask":            "u::rwx,u:65533:rwx,g::rwx,m::---,o::r--",
		"minimal":         "u::r--,g::-w-,o::--x",
		"owner only":      "u::---,u:65534:rwx,g::---,m::rwx,o::---",
		"several groups":  "u::rwx,g::r--,g:65532:-w-,g:65534:--x,m::rwx,o::rwx",
		"other by denial": "u::rwx,u:65533:---,g::rwx,m::rwx,o::rwx",
	}
	for _, kind := range []string{"file", "dir"} {
		for _, name := range sortedKeys(lists) {
			p.make(kind, p.at("x"), 0o750, nobody)
			run(p.t, "", "setfacl", "--set", lists[name], p.at("x"))
			for _, u := range users {
				u.do(p.t, func() {
					line := fmt.Sprintf("%s %s by %v:", kind, name, u)
					for _, mode := range []uint32{unix.R_OK, unix.W_OK, unix.X_OK} {
						line += " " + errnoName(unix.Faccessat2(unix.AT_FDCWD, p.at("x"), mode, unix.AT_EACCESS))
					}
					for _, access := range []int{unix.O_RDONLY, unix.O_WRONLY} {
						line += " " + errnoName(openClose(p.at("x"), access, 0))
					}
					p.log("%s", line)
				})
			}
			p.facl()
			must(p.t, unix.Chmod(p.at("x"), 0o640))
			p.facl()
			must(p.t, unix.Chown(p.at("x"), 1, 2))
			p.facl()
			p.clean()
		}
	}
	// Default lists, on all that is made below, with every umask.
	for _, name := range sortedKeys(lists) {
		p.make("dir", p.at("d"), 0o777, nobody)
		run(p.t, "", "setfacl", "--set", "u::rwx,g::rwx,o::rwx", p.at("d"))
		run(p.t, "", "setfacl", "-d", "--set", lists[name], p.at("d"))
		for _, umask := range []int{0, 0o027, 0o777} {
			for _, mode := range []uint32{0o777, 0o640, 0o2755} {
				other.do(p.t, func() { newNode(p, mode, umask, "below "+name) })
			}
		}
		must(p.t, unix.Mkdir(p.at("d/sub"), 0o755))
		must(p.t, os.WriteFile(p.at("d/file"), nil, 0o644))
		must(p.t, unix.Symlink("file", p.at("d/link")))
		must(p.t, os.Mkdir(p.at("d/sub/sub"), 0o700))
		p.facl()
		p.tree()
		p.clean()
	}
}

// facl writes down all ACLs.
func (p *trace) facl() {
	_ = filepath.WalkDir(p.dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type()&os.ModeSymlink == 0 {
			p.log("%s", run(p.t, "", "getfacl", "-n", "-p", path))
		}
		return err
	})
}

// aclValues sets ACLs that are wrong, empty, or for what cannot have them.
func aclValues(p *trace) {
	entry := func(tag, perm uint16, id uint32) []byte {
		b := binary.LittleEndian.AppendUint16(nil, tag)
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(b, perm), id)
	}
	list := func(entries ...[]byte) []byte { return append([]byte{2, 0, 0, 0}, slices.Concat(entries...)...) }
	const none = 1<<32 - 1
	u, g, o := entry(1, 6, none), entry(4, 4, none), entry(0x20, 0, none)
	values := map[string][]byte{
		"minimal": list(u, g, o), "empty": list(), "nothing": {}, "version": {1, 0, 0, 0}, "short": {2, 0},
		"odd":      append(list(u, g, o), 1),
		"no owner": list(g, o), "no other": list(u, g), "twice": list(u, u, g, o), "disorder": list(g, u, o),
		"perm 8": list(entry(1, 8, none), g, o),
		"tag 3":  list(u, entry(3, 1, none), g, o), "named without mask": list(u, entry(2, 7, 5), g, o),
		"named": list(u, entry(2, 7, 5), g, entry(0x10, 5, none), o), "mask alone": list(u, g, entry(0x10, 5, none), o),
		"two users": list(u, entry(2, 7, 5), entry(2, 6, 4), g, entry(0x10, 7, none), o),
		"same user": list(u, entry(2, 7, 5), entry(2, 6, 5), g, entry(0x10, 7, none), o),
		"bad id":    list(u, entry(2, 7, none), g, entry(0x10, 5, none), o),
	}
	many := [][]byte{u}
	for i := range 500 {
		many = append(many, entry(2, 7, uint32(i)))
	}
	values["many"] = list(append(many, g, entry(0x10, 7, none), o)...)
	for _, kind := range kinds {
		for _, name := range sortedKeys(values) {
			for _, attr := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
				p.make(kind, p.at("x"), 0o2755, nobody)
				for _, who := range []user{other, nobody, root} {
					var err error
					who.do(p.t, func() { err = unix.Lsetxattr(p.at("x"), attr, values[name], 0) })
					p.call(err, "%s of %s %s by %v", attr, kind, name, who)
				}
				b := make([]byte, 10_000)
				n, err := unix.Lgetxattr(p.at("x"), attr, b)
				p.call(err, "%s then %s; %v", p.describe(p.at("x")), sum(b[:max(n, 0)]), p.xattrs(p.at("x")))
				p.call(unix.Lremovexattr(p.at("x"), attr), "removed")
				p.call(unix.Lremovexattr(p.at("x"), attr), "removed again")
				p.show(p.at("x"))
				p.clean()
			}
		}
	}
}

// locks takes locks of all kinds in two processes, runs into a deadlock, and has a holder die.
func locks(p *trace) {
	p.log("%s", run(p.t, p.dir, "python3", "-c", `
import errno, fcntl, os, signal, struct, time
F_OFD_GETLK, F_OFD_SETLK = 36, 37
fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
os.write(fd, b"x" * 100)
def say(what, f):
    try: print(what, f())
    except OSError as e: print(what, errno.errorcode[e.errno])
def ofd(fd, kind, start, n): fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, start, n, 0))
def probe(fd, cmd, start):
    t, w, s, l, pid = struct.unpack("hhqqi4x", fcntl.fcntl(fd, cmd, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, start, 1, 0)))
    return t, s, l, "nobody" if pid == 0 else "OFD" if pid == -1 else "process"
def child(f):
    pid = os.fork()
    if pid: return pid
    try: f()
    finally: os._exit(0)
def inchild(f):
    r, w = os.pipe()
    def g():
        os.dup2(w, 1); f(); os.sys.stdout.flush()
    os.sys.stdout.flush()
    pid = child(g); os.close(w); out = b""
    while b := os.read(r, 4096): out += b
    os.close(r); os.waitpid(pid, 0); print(out.decode(), end="")
def attempts():
    mine = os.open("f", os.O_RDWR)
    say(" flock", lambda: fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB))
    say(" shared flock", lambda: fcntl.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB))
    for start in (0, 15, 50):
        say(" getlk %d" % start, lambda: probe(mine, fcntl.F_GETLK, start))
        say(" setlk %d" % start, lambda: fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start))
        say(" read lock %d" % start, lambda: fcntl.lockf(os.open("f", os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB, 1, start))
        say(" ofd %d" % start, lambda: ofd(mine, fcntl.F_WRLCK, start, 1))
for what, f in (("nothing", lambda: None), ("flock", lambda: fcntl.flock(fd, fcntl.LOCK_SH)), ("flock ex", lambda: fcntl.flock(fd, fcntl.LOCK_EX)),
    ("unflock", lambda: fcntl.flock(fd, fcntl.LOCK_UN)), ("write lock 10-20", lambda: fcntl.lockf(fd, fcntl.LOCK_EX, 10, 10)),
    ("split", lambda: fcntl.lockf(fd, fcntl.LOCK_UN, 2, 14)), ("read lock all", lambda: fcntl.lockf(fd, fcntl.LOCK_SH)),
    ("closing another descriptor", lambda: os.close(os.open("f", os.O_RDONLY))),
    ("ofd", lambda: ofd(fd, fcntl.F_WRLCK, 0, 0)), ("closing another descriptor", lambda: os.close(os.open("f", os.O_RDONLY))),
    ("ofd unlock", lambda: ofd(fd, fcntl.F_UNLCK, 0, 0))):
    say(what, f)
    inchild(attempts)
# A holder that is killed lets go.
r, w = os.pipe()
def hold():
    mine = os.open("f", os.O_RDWR)
    fcntl.lockf(mine, fcntl.LOCK_EX); fcntl.flock(mine, fcntl.LOCK_EX); os.write(w, b"x"); time.sleep(100)
pid = child(hold); os.read(r, 1)
say("held", lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
say("killed", lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
say("killed", lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB))
fcntl.lockf(fd, fcntl.LOCK_UN); fcntl.flock(fd, fcntl.LOCK_UN)
# Two that wait for each other: the second to ask is told.
fcntl.lockf(fd, fcntl.LOCK_EX, 1, 0)
def cross():
    mine = os.open("f", os.O_RDWR)
    fcntl.lockf(mine, fcntl.LOCK_EX, 1, 1); os.write(w, b"x")
    fcntl.lockf(mine, fcntl.LOCK_EX, 1, 0)
pid = child(cross); os.read(r, 1)
while "->" not in open("/proc/locks").read(): time.sleep(0.01)
say("deadlock", lambda: fcntl.lockf(fd, fcntl.LOCK_EX, 1, 1))
fcntl.lockf(fd, fcntl.LOCK_UN); print(os.waitpid(pid, 0)[1])
# A blocked waiter is woken by a signal.
signal.signal(signal.SIGALRM, lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
other = child(lambda: (fcntl.lockf(os.open("f", os.O_RDWR), fcntl.LOCK_EX), os.write(w, b"x"), time.sleep(100))); os.read(r, 1)
signal.setitimer(signal.ITIMER_REAL, 0.1)
try: fcntl.lockf(fd, fcntl.LOCK_EX)
except KeyboardInterrupt: print("interrupted")
os.kill(other, signal.SIGKILL); os.waitpid(other, 0)
`))
}

// symlinkTargets makes links of all lengths.
func symlinkTargets(p *trace) {
	for _, n := range []int{0, 1, 127, 128, 1023, 4094, 4095, 4096} {
		p.call(unix.Symlink(strings.Repeat("x", n), p.at("l")), "symlink to %d bytes", n)
		b := make([]byte, 5000)
		got, err := unix.Readlink(p.at("l"), b)
		p.call(err, "readlink %d", got)
		got, err = unix.Readlink(p.at("l"), b[:10])
		p.call(err, "readlink into 10: %d", got)
		p.show(p.at("l"))
		_ = unix.Unlink(p.at("l"))
	}
	p.call(errOf(unix.Readlink(p.dir, nil)), "readlink into nothing")
	must(p.t, unix.Symlink("/dev/../proc/self/exe", p.at("odd \xff")))
	got, err := os.Readlink(p.at("odd \xff"))
	p.call(err, "%q", got)
}

// ioctls asks what only some file systems know.
func ioctls(p *trace) {
	fd, err := unix.Open(p.at("f"), unix.O_CREAT|unix.O_RDWR, 0o644)
	must(p.t, err)
	defer unix.Close(fd)
	p.call(errOf(unix.IoctlGetInt(fd, 1)), "FIBMAP")
	p.call(errOf(unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)), "F_GET_SEALS")
	p.call(errOf(unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK)), "F_SETLEASE write")
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	p.call(unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 0, 4096), "FALLOC_FL_ZERO_RANGE")
	p.call(unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), "FALLOC_FL_COLLAPSE_RANGE")
	p.call(unix.Fallocate(fd, unix.FALLOC_FL_INSERT_RANGE, 0, 4096), "FALLOC_FL_INSERT_RANGE")
	p.call(unix.Fallocate(fd, unix.FALLOC_FL_UNSHARE_RANGE, 0, 4096), "FALLOC_FL_UNSHARE_RANGE")
	flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	p.call(err, "FS_IOC_GETFLAGS %#x", flags)
	p.call(unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, 0x40), "FS_IOC_SETFLAGS nodump")
}

// statfsFields writes down what statfs says that does not count blocks.
func statfsFields(p *trace) {
	for _, path := range []string{p.dir, filepath.Dir(p.dir)} {
		var st unix.Statfs_t
		must(p.t, unix.Statfs(path, &st))
		p.log("bsize %d frsize %d namelen %d blocks>bfree %v bfree==bavail %v files %d", st.Bsize, st.Frsize, st.Namelen,
			st.Blocks >= st.Bfree, st.Bfree == st.Bavail, st.Files)
		// What an earlier scenario removed may still be on its way out.
		p.log("one inode less: %v", within(10*time.Second, func() bool {
			must(p.t, unix.Statfs(path, &st))
			before := st.Ffree
			p.make("file", p.at("x"), 0o644, root)
			must(p.t, unix.Statfs(path, &st))
			must(p.t, os.Remove(p.at("x")))
			return before-st.Ffree == 1
		}))
	}
}

// TestNameRaces has processes make, link, rename and remove the same few names, and then looks whether names, links and
// the manager agree.
func TestNameRaces(t *testing.T) {
	m := mountMemfs(t, options{memory: "16M"})
	stop := m.trimLoop(50 * time.Millisecond)
	const script = `
import os, random, sys
r = random.Random(sys.argv[1])
dirs = ["d%d" % i for i in range(4)]
name = lambda: r.choice(dirs) + "/" + r.choice("abcdef")
for _ in range(int(sys.argv[2])):
    try:
        op = r.randrange(8)
        if op == 0: os.close(os.open(name(), os.O_CREAT | os.O_WRONLY, 0o644))
        elif op == 1: os.mkdir(name())
        elif op == 2: os.link(name(), name())
        elif op == 3: os.unlink(name())
        elif op == 4: os.rmdir(name())
        elif op in (5, 6): os.rename(name(), name())
        else: os.listdir(r.choice(dirs))
    except OSError: pass
`
	for i := range 4 {
		must(t, os.Mkdir(m.path(fmt.Sprint("d", i)), 0o755))
	}
	var group sync.WaitGroup
	for seed := range 4 {
		group.Go(func() {
			if _, err := tryRun(m.dir, "", "python3", "-c", script, fmt.Sprint(seed), short("6000", "2000")); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	stop()
	links, nlink := map[uint64]uint64{}, map[uint64]uint64{}
	must(t, filepath.WalkDir(m.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st := stat(t, path)
		nlink[st.Ino] = st.Nlink
		links[st.Ino]++
		if e.IsDir() {
			links[st.Ino]++ // its dot
			if path != m.dir {
				links[stat(t, filepath.Dir(path)).Ino]++
			} else {
				return nil
			}
		}
		return nil
	}))
	for ino, n := range links {
		if nlink[ino] != n {
			t.Errorf("inode %d has %d links, its names make %d", ino, nlink[ino], n)
		}
	}
	m.check()
	run(t, m.dir, "sh", "-c", "rm -rf d*")
	if n := m.vmstat().get(t, "sections"); n != 0 {
		t.Errorf("%d sections are left in an empty mount", n)
	}
}

// TestHugeDirectory lists a directory of many names, by several descriptors at once, while names come and go in it.
func TestHugeDirectory(t *testing.T) {
	names := hugeDirectoryNames
	m := mountMemfs(t, options{memory: "192M", noPageFile: true, flags: []string{fmt.Sprint("--nr-inodes=", names+1000)}})
	make := exec.Command("python3", "-c", `
import os, sys
for i in range(int(sys.argv[1])): os.close(os.open("stay%06d" % i, os.O_CREAT | os.O_WRONLY))
`, fmt.Sprint(names))
	make.Dir = m.dir
	must(t, make.Run())
	quit := false
	var mu sync.Mutex
	var churn, readers sync.WaitGroup
	churn.Go(func() {
		for i := 0; ; i++ {
			mu.Lock()
			done := quit
			mu.Unlock()
			if done {
				return
			}
			name := m.path(fmt.Sprint("go", i%300))
			if err := errors.Join(os.WriteFile(name, nil, 0o644), os.Rename(name, name+"x"), os.Remove(name+"x")); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for reader := range 3 {
		readers.Go(func() {
			f, err := os.Open(m.dir)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			seen := map[string]int{}
			for {
				list, err := f.Readdirnames(100 + 1000*reader)
				for _, name := range list {
					seen[name]++
				}
				if err != nil {
					break
				}
			}
			for i := range names {
				if n := seen[fmt.Sprintf("stay%06d", i)]; n != 1 {
					t.Errorf("stay%06d was listed %d times", i, n)
					return
				}
			}
		})
	}
	readers.Wait()
	mu.Lock()
	quit = true
	mu.Unlock()
	churn.Wait()
	run(t, m.dir, "sh", "-c", "find . -name 'stay*' -delete; ls -A | grep -q stay && exit 1; true")
}
