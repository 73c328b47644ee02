package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	_ = scenarios(false, map[string]func(p *trace){
		"PathErrors":     pathErrors,
		"OpenMatrix":     openMatrix,
		"BadDescriptors": badDescriptors,
	})
	_ = scenarios(true, map[string]func(p *trace){
		"BadAddresses": badAddresses,
		"Limits":       limits,
	})
)

func addressOf[T any](p *T) uintptr { return uintptr(unsafe.Pointer(p)) }

// pathCall is a call that takes a path.
type pathCall struct {
	name string
	do   func(p *trace, path string) error
}

func openClose(path string, flags int, mode uint32) error {
	fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, mode)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// pathCalls is every call that a path can be given to, with other arguments that are good.
var pathCalls = []pathCall{
	{"stat", func(_ *trace, path string) error { return unix.Stat(path, new(unix.Stat_t)) }},
	{"lstat", func(_ *trace, path string) error { return unix.Lstat(path, new(unix.Stat_t)) }},
	{"access", func(_ *trace, path string) error { return unix.Faccessat(unix.AT_FDCWD, path, unix.R_OK, 0) }},
	{"open", func(_ *trace, path string) error { return openClose(path, unix.O_RDONLY, 0) }},
	{"open to write", func(_ *trace, path string) error { return openClose(path, unix.O_WRONLY, 0) }},
	{"open nofollow", func(_ *trace, path string) error { return openClose(path, unix.O_NOFOLLOW, 0) }},
	{"opendir", func(_ *trace, path string) error { return openClose(path, unix.O_DIRECTORY, 0) }},
	{"creat", func(_ *trace, path string) error { return openClose(path, unix.O_CREAT|unix.O_WRONLY, 0o644) }},
	{"creat excl", func(_ *trace, path string) error {
		return openClose(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
	}},
	{"open tmpfile", func(_ *trace, path string) error { return openClose(path, unix.O_TMPFILE|unix.O_WRONLY, 0o644) }},
	{"chdir", func(p *trace, path string) (err error) {
		root.do(p.t, func() { err = unix.Chdir(path) })
		return err
	}},
	{"chmod", func(_ *trace, path string) error { return unix.Chmod(path, 0o751) }},
	{"chown", func(_ *trace, path string) error { return unix.Chown(path, 11, 12) }},
	{"lchown", func(_ *trace, path string) error { return unix.Lchown(path, 13, 14) }},
	{"truncate", func(_ *trace, path string) error { return unix.Truncate(path, 77) }},
	{"utimens", func(_ *trace, path string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, make([]unix.Timespec, 2), 0)
	}},
	{"mkdir", func(_ *trace, path string) error { return unix.Mkdir(path, 0o755) }},
	{"mkfifo", func(_ *trace, path string) error { return unix.Mkfifo(path, 0o644) }},
	{"mknod", func(_ *trace, path string) error { return unix.Mknod(path, unix.S_IFCHR|0o644, 0x103) }},
	{"symlink", func(_ *trace, path string) error { return unix.Symlink("file", path) }},
	{"readlink", func(_ *trace, path string) error { return errOf(unix.Readlink(path, make([]byte, 100))) }},
	{"rmdir", func(_ *trace, path string) error { return unix.Rmdir(path) }},
	{"unlink", func(_ *trace, path string) error { return unix.Unlink(path) }},
	{"link from", func(p *trace, path string) error { return unix.Link(path, p.at("new")) }},
	{"link to", func(p *trace, path string) error { return unix.Link(p.at("file"), path) }},
	{"rename from", func(p *trace, path string) error { return unix.Rename(path, p.at("new")) }},
	{"rename file to", func(p *trace, path string) error { return unix.Rename(p.at("file"), path) }},
	{"rename dir to", func(p *trace, path string) error { return unix.Rename(p.at("empty"), path) }},
	{"statfs", func(_ *trace, path string) error { return unix.Statfs(path, new(unix.Statfs_t)) }},
	{"setxattr", func(_ *trace, path string) error { return unix.Setxattr(path, "user.a", []byte("b"), 0) }},
	{"lsetxattr", func(_ *trace, path string) error { return unix.Lsetxattr(path, "trusted.a", []byte("b"), 0) }},
	{"getxattr", func(_ *trace, path string) error { return errOf(unix.Getxattr(path, "user.a", nil)) }},
	{"listxattr", func(_ *trace, path string) error { return errOf(unix.Listxattr(path, nil)) }},
	{"removexattr", func(_ *trace, path string) error { return unix.Removexattr(path, "user.a") }},
	{"name_to_handle_at", func(_ *trace, path string) error {
		_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		return err
	}},
	{"inotify_add_watch", func(_ *trace, path string) error {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return errOf(unix.InotifyAddWatch(fd, path, unix.IN_ALL_EVENTS))
	}},
	{"execve", func(p *trace, path string) error {
		_, err := os.StartProcess(path, []string{"x"}, &os.ProcAttr{})
		return err
	}},
}

// pathErrors gives every call every path that is unusual.
func pathErrors(p *trace) {
	name255, name256 := strings.Repeat("n", 255), strings.Repeat("n", 256)
	paths := map[string]string{
		"empty": "", "none": "none", "below nothing": "none/x", "below a file": "file/x", "below a fifo": "fifo/x",
		"file/": "file/", "dir/": "dir/", "none/": "none/", "link to dir/": "todir/", "link to file/": "tofile/",
		"dangling/": "dangling/", "dir/.": "dir/.", "dir/..": "dir/..", "dir/../file": "dir/../file", ".": ".",
		"..":  "dir/sub/..",
		"255": name255, "256": name256, "256 below": name256 + "/x", "255/": name255 + "/", "dir/256": "dir/" + name256,
		"loop": "loop1", "below a loop": "loop1/x", "dangling": "dangling", "link to file": "tofile", "link to dir": "todir",
		"through a link": "todir/inside", "file": "file", "empty dir": "empty", "dir": "dir", "fifo": "fifo", "sock": "sock",
		"char": "char", "block": "block", "40 links": "chain40", "41 links": "chain41", "new below link": "todir/new2",
		"slashes": "dir//.///inside", "odd bytes": "\x01\xff\n", "link to none/": "tonone/", "..x": "..x",
	}
	for _, length := range []int{4094, 4095, 4096} { // PATH_MAX counts the NUL: 4095 is the longest path
		name := fmt.Sprintf("path of %d", length)
		paths[name] = strings.Repeat("./", (length-len(p.dir)-6)/2) + strings.Repeat("/", (length-len(p.dir)-6)%2) + "xfile"
	}
	try := p.onTree(func() { pathErrorsTree(p) })
	for _, c := range pathCalls {
		for _, name := range sortedKeys(paths) {
			path := p.dir + "/" + paths[name]
			if name == "empty" {
				path = ""
			}
			try(func() { p.call(c.do(p, path), "%s of %s", c.name, name) })
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// pathErrorsTree makes what the paths of pathErrors lead to.
func pathErrorsTree(p *trace) {
	t := p.t
	for _, kind := range []string{"file", "fifo", "sock", "char", "block", "dir"} {
		p.make(kind, p.at(kind), 0o755, root)
	}
	p.make("dir", p.at("empty"), 0o755, root)
	p.make("dir", p.at("dir/sub"), 0o755, root)
	p.make("file", p.at("dir/inside"), 0o644, root)
	for name, target := range map[string]string{"todir": "dir", "tofile": "file", "dangling": "nowhere", "tonone": "none/",
		"loop1": "loop2", "loop2": "loop1", "chain40": "chain39", "chain41": "chain40"} {
		must(t, unix.Symlink(target, p.at(name)))
	}
	for i := 39; i > 1; i-- {
		must(t, unix.Symlink(fmt.Sprint("chain", i-1), p.at(fmt.Sprint("chain", i))))
	}
	must(t, unix.Symlink("file", p.at("chain1")))
	p.make("file", p.at("xfile"), 0o644, root)
}

// openMatrix opens every kind of node with every combination of flags.
func openMatrix(p *trace) {
	bits := []int{unix.O_CREAT, unix.O_EXCL, unix.O_TRUNC, unix.O_NOFOLLOW, unix.O_DIRECTORY, unix.O_PATH}
	p.make("dir", p.at("in"), 0o755, root)
	for _, kind := range append([]string{"none", "tofile", "todir", "tonone"}, kinds...) {
		for _, access := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, 3} {
			eachSubset(bits, func(flags int) {
				path := p.at("in/x")
				switch kind {
				case "none":
				case "tofile", "todir", "tonone":
					must(p.t, unix.Symlink(kind[2:], path))
					if kind != "tonone" {
						p.make(kind[2:], p.at("in", kind[2:]), 0o755, root)
					}
				default:
					p.make(kind, path, 0o755, root)
				}
				if kind == "file" {
					must(p.t, unix.Truncate(path, 10))
				}
				fd, err := unix.Open(path, access|flags|unix.O_NONBLOCK, 0o640)
				line := fmt.Sprintf("%s access %d flags %#o: %s", kind, access, flags, errnoName(err))
				if err == nil {
					got, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
					line += fmt.Sprintf(" F_GETFL %#o", got)
					unix.Close(fd)
				}
				p.log("%s; %s", line, p.describe(path))
				must(p.t, os.RemoveAll(p.at("in")))
				p.make("dir", p.at("in"), 0o755, root)
			})
		}
	}
}

// badAddresses gives calls that move bytes to or from a program an address that the program does not have.
func badAddresses(p *trace) {
	const bad = 16
	p.make("file", p.at("f"), 0o644, root)
	must(p.t, unix.Symlink("f", p.at("l")))
	must(p.t, unix.Setxattr(p.at("f"), "user.a", []byte("value"), 0))
	fd, err := unix.Open(p.at("f"), unix.O_RDWR, 0)
	must(p.t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, block(1, 10_000))
	must(p.t, err)
	dirfd, err := unix.Open(p.dir, unix.O_RDONLY, 0)
	must(p.t, err)
	defer unix.Close(dirfd)
	name := func(s string) uintptr { b, _ := unix.BytePtrFromString(s); return addressOf(b) }
	f, at := uintptr(fd), int(unix.AT_FDCWD)
	for _, c := range []struct {
		name string
		args [6]uintptr
		nr   uintptr
	}{
		{"read", [6]uintptr{f, bad, 100}, unix.SYS_READ},
		{"pread", [6]uintptr{f, bad, 5000, 4090}, unix.SYS_PREAD64},
		{"write", [6]uintptr{f, bad, 100}, unix.SYS_WRITE},
		{"pwrite", [6]uintptr{f, bad, 9000, 3}, unix.SYS_PWRITE64},
		{"readv", [6]uintptr{f, bad, 2}, unix.SYS_READV},
		{"writev", [6]uintptr{f, bad, 2}, unix.SYS_WRITEV},
		{"writev of too many", [6]uintptr{f, bad, 1025}, unix.SYS_WRITEV},
		{"getdents64", [6]uintptr{uintptr(dirfd), bad, 4096}, unix.SYS_GETDENTS64},
		{"fstat", [6]uintptr{f, bad}, unix.SYS_FSTAT},
		{"fstatfs", [6]uintptr{f, bad}, unix.SYS_FSTATFS},
		{"readlink", [6]uintptr{uintptr(at), name(p.at("l")), bad, 100}, unix.SYS_READLINKAT},
		{"fgetxattr", [6]uintptr{f, name("user.a"), bad, 100}, unix.SYS_FGETXATTR},
		{"fsetxattr", [6]uintptr{f, name("user.b"), bad, 100, 0}, unix.SYS_FSETXATTR},
		{"flistxattr", [6]uintptr{f, bad, 100}, unix.SYS_FLISTXATTR},
		{"utimensat", [6]uintptr{uintptr(at), name(p.at("f")), bad, 0}, unix.SYS_UTIMENSAT},
		{"open", [6]uintptr{uintptr(at), bad, 0}, unix.SYS_OPENAT},
		{"symlink", [6]uintptr{bad, uintptr(at), name(p.at("s"))}, unix.SYS_SYMLINKAT},
		{"rename", [6]uintptr{uintptr(at), name(p.at("f")), uintptr(at), bad}, unix.SYS_RENAMEAT},
	} {
		_, _, errno := unix.Syscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		p.call(asError(errno), "%s at a bad address", c.name)
	}
	p.tree()

	// Of a buffer that ends in memory that is not there, what can be moved is.
	page, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(p.t, err)
	defer unix.Munmap(page)
	must(p.t, unix.Mprotect(page[4096:], unix.PROT_NONE))
	edge := addressOf(&page[4096]) - 100
	n, _, errno := unix.Syscall6(unix.SYS_PREAD64, f, edge, 5000, 0, 0, 0)
	p.log("pread to the edge of memory: %d %s", int(n), errnoName(asError(errno)))
	n, _, errno = unix.Syscall6(unix.SYS_PWRITE64, f, edge, 5000, 0, 0, 0)
	p.log("pwrite from the edge of memory: %d %s", int(n), errnoName(asError(errno)))
	p.show(p.at("f"))
}

func asError(errno syscall.Errno) error {
	if errno == 0 {
		return nil
	}
	return errno
}

// badDescriptors gives calls descriptors that are not open, not for that, or not of that.
func badDescriptors(p *trace) {
	p.make("file", p.at("f"), 0o644, root)
	p.make("fifo", p.at("fifo"), 0o644, root)
	open := func(path string, flags int) int {
		fd, err := unix.Open(path, flags|unix.O_NONBLOCK, 0)
		must(p.t, err)
		return fd
	}
	fds := map[string]int{"none": -1, "reading": open(p.at("f"), unix.O_RDONLY), "writing": open(p.at("f"), unix.O_WRONLY),
		"both": open(p.at("f"), unix.O_RDWR), "dir": open(p.dir, unix.O_RDONLY), "path": open(p.at("f"), unix.O_PATH),
		"path of dir": open(p.dir, unix.O_PATH), "fifo": open(p.at("fifo"), unix.O_RDWR),
		"append": open(p.at("f"), unix.O_WRONLY|unix.O_APPEND)}
	var locked unix.Flock_t
	for _, name := range sortedKeys(fds) {
		fd := fds[name]
		b := make([]byte, 10)
		for _, c := range []struct {
			name string
			err  error
		}{
			{"pread", errOf(unix.Pread(fd, b, 0))},
			{"pread at -1", errOf(unix.Pread(fd, b, -1))},
			{"pwrite", errOf(unix.Pwrite(fd, b, 0))},
			{"pwrite at -1", errOf(unix.Pwrite(fd, b, -1))},
			{"seek to -1", errOf(unix.Seek(fd, -1, unix.SEEK_SET))},
			{"seek whence 9", errOf(unix.Seek(fd, 0, 9))},
			{"ftruncate", unix.Ftruncate(fd, 5)},
			{"ftruncate to -1", unix.Ftruncate(fd, -1)},
			{"fallocate", unix.Fallocate(fd, 0, 0, 10)},
			{"fallocate at -1", unix.Fallocate(fd, 0, -1, 10)},
			{"fallocate punch without keep", unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE, 0, 10)},
			{"fallocate unknown", unix.Fallocate(fd, 0x1000, 0, 10)},
			{"fchmod", unix.Fchmod(fd, 0o666)},
			{"fchown", unix.Fchown(fd, 3, 4)},
			{"fsync", unix.Fsync(fd)},
			{"fdatasync", unix.Fdatasync(fd)},
			{"syncfs", unix.Syncfs(fd)},
			{"sync_file_range", unix.SyncFileRange(fd, 0, 100, unix.SYNC_FILE_RANGE_WRITE)},
			{"fadvise", unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)},
			{"fadvise unknown", unix.Fadvise(fd, 0, 0, 77)},
			{"readahead", asError(func() (e syscall.Errno) {
				_, _, e = unix.Syscall(unix.SYS_READAHEAD, uintptr(fd), 0, 4096)
				return
			}())},
			{"getdents", errOf(unix.Getdents(fd, make([]byte, 1000)))},
			{"getdents small", errOf(unix.Getdents(fd, make([]byte, 5)))},
			{"fchdir", func() (err error) { root.do(p.t, func() { err = unix.Fchdir(fd) }); return }()},
			{"fstatfs", unix.Fstatfs(fd, new(unix.Statfs_t))},
			{"flock", unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB)},
			{"unflock", unix.Flock(fd, unix.LOCK_UN)},
			{"setlk read", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_RDLCK})},
			{"setlk write", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})},
			{"getlk", unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &locked)},
			{"unlk", unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})},
			{"fsetxattr", unix.Fsetxattr(fd, "user.x", b, 0)},
			{"mmap shared rw", mapOnce(fd, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)},
			{"mmap shared w", mapOnce(fd, unix.PROT_WRITE, unix.MAP_SHARED)},
			{"mmap shared r", mapOnce(fd, unix.PROT_READ, unix.MAP_SHARED)},
			{"mmap private rw", mapOnce(fd, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)},
			{"mmap exec", mapOnce(fd, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)},
			{"mmap validate", mapOnce(fd, unix.PROT_READ, unix.MAP_SHARED_VALIDATE)},
			{"mmap sync", mapOnce(fd, unix.PROT_READ, unix.MAP_SHARED_VALIDATE|unix.MAP_SYNC)},
			{"linkat of it", unix.Linkat(fd, "", unix.AT_FDCWD, p.at("linked"), unix.AT_EMPTY_PATH)},
			{"openat below", errOf(unix.Openat(fd, "f/x", 0, 0))},
			{"FIONREAD", errOf(unix.IoctlGetInt(fd, unix.TIOCINQ))},
			{"FIGETBSZ", errOf(unix.IoctlGetInt(fd, 2))},
			{"TCGETS", errOf(unix.IoctlGetTermios(fd, unix.TCGETS))},
			{"F_GETPIPE_SZ", errOf(unix.FcntlInt(uintptr(fd), unix.F_GETPIPE_SZ, 0))},
			{"F_SETLEASE", errOf(unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK))},
			{"O_DIRECT on", errOf(unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_DIRECT))},
		} {
			p.call(c.err, "%s on %s", c.name, name)
			_ = os.Remove(p.at("linked"))
		}
	}
	p.tree()
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func mapOnce(fd, prot, flags int) error {
	m, err := unix.Mmap(fd, 0, 4096, prot, flags)
	if err == nil {
		_ = unix.Munmap(m)
	}
	return err
}

// limits meets RLIMIT_FSIZE and the largest sizes.
func limits(p *trace) {
	out := run(p.t, p.dir, "python3", "-c", `
import os, resource, signal, errno
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
fd = os.open("f", os.O_RDWR | os.O_CREAT, 0o644)
def call(what, f):
    try:
        print(what, f())
    except OSError as e:
        print(what, errno.errorcode[e.errno])
call("write across", lambda: os.pwrite(fd, b"x" * 5000, 9000))
call("write at", lambda: os.pwrite(fd, b"x", 10000))
call("write past", lambda: os.pwrite(fd, b"x", 20000))
call("truncate to", lambda: os.ftruncate(fd, 10000))
call("truncate past", lambda: os.ftruncate(fd, 10001))
call("truncate past by name", lambda: os.truncate("f", 10001))
call("fallocate past", lambda: os.posix_fallocate(fd, 0, 10001))
call("fallocate to", lambda: os.posix_fallocate(fd, 0, 10000))
print(os.fstat(fd).st_size)
`)
	p.log("%s", out)
	fd, err := unix.Open(p.at("g"), unix.O_RDWR|unix.O_CREAT, 0o644)
	must(p.t, err)
	defer unix.Close(fd)
	for _, size := range []int64{1<<63 - 1, 1<<63 - 4096, 1 << 62, 1 << 40, 0} {
		p.call(unix.Ftruncate(fd, size), "ftruncate to %d", size)
		p.show(p.at("g"))
	}
	for _, off := range []int64{1<<63 - 1, 1<<63 - 2, 1 << 62} {
		n, err := unix.Pwrite(fd, []byte("xyz"), off)
		p.log("pwrite at %d: %d %s", off, n, errnoName(err))
		n, err = unix.Pread(fd, make([]byte, 5), off)
		p.log("pread at %d: %d %s", off, n, errnoName(err))
		at, err := unix.Seek(fd, off, unix.SEEK_SET)
		p.log("seek to %d: %d %s", off, at, errnoName(err))
		p.show(p.at("g"))
	}
}
