package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var _ = scenarios(false, map[string]func(p *trace){
	"RenameMatrix": renameMatrix,
	"LinkMatrix":   linkMatrix,
	"RemoveMatrix": removeMatrix,
	"TimesMoved":   timesMoved,
	"TimesRange":   timesRange,
	"BirthTime":    birthTime,
	"Tmpfiles":     tmpfiles,
	"Directories":  directories,
	"Handles":      handles,
	"Inotify":      inotify,
	"Mountpoint":   mountpoint,
})

// renameMatrix renames every kind of node over every kind, with all flags.
func renameMatrix(p *trace) {
	build := func() {
		for _, side := range []string{"a", "b"} {
			p.make("dir", p.at(side), 0o755, root)
			for _, kind := range kinds {
				p.make(kind, p.at(side, kind), 0o755, root)
			}
			p.make("dir", p.at(side, "full"), 0o755, root)
			p.make("file", p.at(side, "full/inside"), 0o644, root)
		}
		must(p.t, unix.Link(p.at("a/file"), p.at("a/twin")))
		must(p.t, unix.Link(p.at("a/link"), p.at("b/linktwin")))
		must(p.t, unix.Symlink("full", p.at("b/tofull")))
	}
	sources := append([]string{"none", "full", "twin", ".", "tofull"}, kinds...)
	targets := append([]string{"b/none", "b/full", "a/file", "a/twin", "b/linktwin", "a/full/sub", "a/full/inside",
		"a", "b", "b/..", "b/none/x",
		"b/file/x", "b/tofull", "b/none/", "b/dir/"}, prefixed("b/", kinds)...)
	try := p.onTree(build)
	for _, flags := range []uint{0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_WHITEOUT,
		unix.RENAME_WHITEOUT | unix.RENAME_NOREPLACE, unix.RENAME_WHITEOUT | unix.RENAME_EXCHANGE,
		unix.RENAME_NOREPLACE | unix.RENAME_EXCHANGE, 8} {
		for _, from := range sources {
			for _, to := range targets {
				if flags > unix.RENAME_WHITEOUT && from != "file" && from != "dir" && from != "none" {
					continue
				}
				try(func() {
					err := unix.Renameat2(unix.AT_FDCWD, p.at("a")+"/"+from, unix.AT_FDCWD, p.dir+"/"+to, flags)
					p.call(err, "rename %#x a/%s to %s", flags, from, to)
				})
			}
		}
	}
	p.clean()
	// A whiteout needs the right to make devices.
	try = p.onTree(func() { p.make("dir", p.at("d"), 0o777, root); p.make("file", p.at("d/f"), 0o644, root) })
	for _, u := range []user{root, nobody} {
		try(func() {
			var err error
			u.do(p.t, func() {
				err = unix.Renameat2(unix.AT_FDCWD, p.at("d/f"), unix.AT_FDCWD, p.at("d/g"), unix.RENAME_WHITEOUT)
			})
			p.call(err, "whiteout by %v", u)
			p.call(openClose(p.at("d/f"), unix.O_RDONLY, 0), "open of the whiteout")
		})
	}
}

func prefixed(prefix string, names []string) []string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = prefix + name
	}
	return all
}

// linkMatrix links every kind of node, in every way there is.
func linkMatrix(p *trace) {
	build := func() {
		for _, kind := range kinds {
			p.make(kind, p.at(kind), 0o644, nobody)
		}
		p.make("dir", p.at("d"), 0o777, root)
		must(p.t, unix.Symlink("file", p.at("tofile")))
	}
	try := p.onTree(build)
	for _, u := range []user{root, nobody, other} {
		for _, from := range append([]string{"none", "tofile"}, kinds...) {
			for _, flags := range []int{0, unix.AT_SYMLINK_FOLLOW, 0x4000} {
				for _, to := range []string{"d/new", "file", "link", "dir", "none/x", "file/x", "new/"} {
					try(func() {
						var err error
						u.do(p.t, func() {
							err = unix.Linkat(unix.AT_FDCWD, p.at(from), unix.AT_FDCWD, p.dir+"/"+to, flags)
						})
						p.call(err, "link %#x of %s to %s by %v", flags, from, to, u)
					})
				}
			}
		}
	}
	p.clean()
	p.make("file", p.at("f"), 0o644, root)
	for i := range 1000 {
		must(p.t, unix.Link(p.at("f"), p.at(fmt.Sprint("l", i))))
	}
	p.show(p.at("f"))
	for i := range 999 {
		must(p.t, unix.Unlink(p.at(fmt.Sprint("l", i))))
	}
	p.tree()
}

// removeMatrix removes every kind of node in every way.
func removeMatrix(p *trace) {
	build := func() {
		for _, kind := range kinds {
			p.make(kind, p.at(kind), 0o644, root)
		}
		p.make("file", p.at("dir/inside"), 0o644, root)
		p.make("dir", p.at("empty"), 0o755, root)
		must(p.t, unix.Symlink("empty", p.at("toempty")))
	}
	try := p.onTree(build)
	for _, name := range append([]string{"none", "empty", "toempty", "toempty/", "empty/", "empty/.", "empty/..",
		"file/", ".", ".."}, kinds...) {
		for _, flags := range []int{0, unix.AT_REMOVEDIR, 0x4000} {
			try(func() { p.call(unix.Unlinkat(unix.AT_FDCWD, p.dir+"/"+name, flags), "unlinkat %#x of %s", flags, name) })
		}
	}
	p.clean()
	// What is open stays usable, without a name.
	for _, kind := range []string{"file", "dir", "fifo"} {
		p.make(kind, p.at("x"), 0o755, root)
		fd, err := unix.Open(p.at("x"), unix.O_RDONLY|unix.O_NONBLOCK, 0)
		must(p.t, err)
		must(p.t, os.Remove(p.at("x")))
		var st unix.Stat_t
		p.call(unix.Fstat(fd, &st), "fstat of a removed %s: mode %o links %d", kind, st.Mode, st.Nlink)
		p.log("links %d", st.Nlink)
		p.call(unix.Fchmod(fd, 0o700), "fchmod of a removed %s", kind)
		p.call(unix.Fchown(fd, 1, 2), "fchown of a removed %s", kind)
		p.call(unix.Fsetxattr(fd, "trusted.a", []byte("b"), 0), "fsetxattr of a removed %s", kind)
		p.call(unix.Fsync(fd), "fsync of a removed %s", kind)
		p.call(unix.Futimes(fd, make([]unix.Timeval, 2)), "futimes of a removed %s", kind)
		p.call(unix.Linkat(fd, "", unix.AT_FDCWD, p.at("again"), unix.AT_EMPTY_PATH), "linkat of a removed %s", kind)
		p.call(errOf(unix.Openat(fd, "new", unix.O_CREAT, 0o600)), "openat in a removed %s", kind)
		p.call(unix.Mkdirat(fd, "new", 0o600), "mkdirat in a removed %s", kind)
		p.call(unix.Renameat(unix.AT_FDCWD, p.dir, fd, "new"), "rename into a removed %s", kind)
		p.call(errOf(unix.Getdents(fd, make([]byte, 4096))), "getdents of a removed %s", kind)
		up, err := unix.Openat(fd, "..", 0, 0)
		p.call(err, "openat .. of a removed %s", kind)
		if err == nil {
			unix.Close(up)
		}
		p.call(openClose(fmt.Sprint("/proc/self/fd/", fd), unix.O_RDONLY, 0), "reopening a removed %s", kind)
		must(p.t, unix.Fstat(fd, &st))
		p.log("mode %o owner %d:%d links %d", st.Mode, st.Uid, st.Gid, st.Nlink)
		unix.Close(fd)
	}
}

// timesMoved writes down which times each call moves, of what it changes and of the directories.
func timesMoved(p *trace) {
	for _, kind := range kinds {
		p.make("dir", p.at("d"), 0o755, root)
		p.make("dir", p.at("e"), 0o755, root)
		p.make(kind, p.at("d/x"), 0o755, root)
		d, e, x, y := p.at("d"), p.at("e"), p.at("d/x"), p.at("e/y")
		all := []string{d, e, x, y}
		move := func(what string, f func() error) { p.moved(all, f, "%s of %s", what, kind) }
		move("chmod", func() error { return unix.Fchmodat(unix.AT_FDCWD, x, 0o711, 0) })
		move("same chmod", func() error { return unix.Fchmodat(unix.AT_FDCWD, x, 0o711, 0) })
		move("lchown", func() error { return unix.Lchown(x, 3, 4) })
		move("same lchown", func() error { return unix.Lchown(x, 3, 4) })
		move("lchown nothing", func() error { return unix.Lchown(x, -1, -1) })
		move("utimens", func() error { return unix.Lutimes(x, []unix.Timeval{{Sec: 1}, {Sec: 2}}) })
		move("lsetxattr", func() error { return unix.Lsetxattr(x, "trusted.a", []byte("b"), 0) })
		move("lsetxattr again", func() error { return unix.Lsetxattr(x, "trusted.a", []byte("b"), unix.XATTR_CREATE) })
		move("lremovexattr", func() error { return unix.Lremovexattr(x, "trusted.a") })
		move("lremovexattr again", func() error { return unix.Lremovexattr(x, "trusted.a") })
		move("link", func() error { return unix.Link(x, y) })
		move("link again", func() error { return unix.Link(x, y) })
		move("rename of links", func() error { return unix.Rename(x, y) })
		move("unlink of a link", func() error { return unix.Unlink(y) })
		move("unlink of nothing", func() error { return unix.Unlink(y) })
		move("rename", func() error { return unix.Rename(x, y) })
		move("rename of nothing", func() error { return unix.Rename(x, y) })
		move("rename back", func() error { return unix.Rename(y, x) })
		move("rename within", func() error { return unix.Rename(x, p.at("d/z")) })
		move("rename within back", func() error { return unix.Rename(p.at("d/z"), x) })
		p.make("file", y, 0o644, root)
		move("exchange", func() error { return unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, y, unix.RENAME_EXCHANGE) })
		move("exchange back", func() error {
			return unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, y, unix.RENAME_EXCHANGE)
		})
		move("noreplace", func() error { return unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, y, unix.RENAME_NOREPLACE) })
		move("rename over a file", func() error { return unix.Rename(x, y) })
		if kind != "dir" {
			move("whiteout", func() error {
				return unix.Renameat2(unix.AT_FDCWD, y, unix.AT_FDCWD, x, unix.RENAME_WHITEOUT)
			})
		}
		p.clean()
	}
	timesMovedInside(p)
}

// timesMovedInside is timesMoved for calls that make nodes, and that change bytes.
func timesMovedInside(p *trace) {
	d, x := p.at("d"), p.at("d/x")
	p.make("dir", d, 0o755, root)
	for _, kind := range kinds {
		p.moved([]string{p.dir, d}, func() error { p.make(kind, x, 0o644, root); return nil }, "making a %s", kind)
		st := stat(p.t, x)
		p.log("all times of a new %s are one: %v %v", kind, st.Atim == st.Mtim, kind == "file" || st.Atim == st.Mtim)
		p.moved([]string{p.dir, d}, func() error { return unix.Mkdir(x, 0o755) }, "mkdir over a %s", kind)
		p.moved([]string{p.dir, d}, func() error { return unix.Rmdir(x) }, "rmdir of a %s", kind)
		p.moved([]string{p.dir, d}, func() error { return unix.Unlink(x) }, "unlink of a %s", kind)
	}
	fd, err := unix.Open(x, unix.O_CREAT|unix.O_RDWR, 0o644)
	must(p.t, err)
	defer unix.Close(fd)
	for _, c := range []struct {
		what string
		f    func() error
	}{
		{"write", func() error { return errOf(unix.Write(fd, []byte("hello"))) }},
		{"write of nothing", func() error { return errOf(unix.Write(fd, nil)) }},
		{"read", func() error { return errOf(unix.Pread(fd, make([]byte, 3), 0)) }},
		{"ftruncate", func() error { return unix.Ftruncate(fd, 3) }},
		{"same ftruncate", func() error { return unix.Ftruncate(fd, 3) }},
		{"truncate", func() error { return unix.Truncate(x, 5000) }},
		{"same truncate", func() error { return unix.Truncate(x, 5000) }},
		{"bad ftruncate", func() error { return unix.Ftruncate(fd, -1) }},
		{"open O_TRUNC", func() error { return openClose(x, unix.O_RDWR|unix.O_TRUNC, 0) }},
		{"open O_TRUNC empty", func() error { return openClose(x, unix.O_RDWR|unix.O_TRUNC, 0) }},
		{"open O_CREAT", func() error { return openClose(x, unix.O_RDWR|unix.O_CREAT, 0o600) }},
		{"fallocate", func() error { return unix.Fallocate(fd, 0, 0, 9000) }},
		{"fallocate inside", func() error { return unix.Fallocate(fd, 0, 0, 9000) }},
		{"fallocate keep", func() error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 10_000) }},
		{"punch", func() error { return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096) }},
		{"bad fallocate", func() error { return unix.Fallocate(fd, 0, -1, 5) }},
		{"fsync", func() error { return unix.Fsync(fd) }},
		{"copy_file_range", func() error {
			in, out := int64(0), int64(100)
			return errOf(unix.CopyFileRange(fd, &in, fd, &out, 50, 0))
		}},
		{"store", func() error {
			m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			m[0]++
			return unix.Munmap(m)
		}},
		{"utimes and fsync", func() error {
			_ = unix.Futimes(fd, []unix.Timeval{{Sec: 1}, {Sec: 2}})
			return unix.Fsync(fd)
		}},
	} {
		p.moved([]string{d, x}, c.f, "%s", c.what)
	}
}

// timesRange sets times before 1970 and long after us.
func timesRange(p *trace) {
	for _, kind := range []string{"file", "dir", "link"} {
		p.make(kind, p.at("x"), 0o644, root)
		for _, sec := range []int64{0, -1, -1 << 31, -1<<31 - 1, 1<<31 - 1, 1 << 31, 1 << 32, 1<<33 + 1, 1 << 34,
			1 << 40, -1 << 40, 1<<55 + 3} {
			for _, nsec := range []int64{0, 1, 999_999_999} {
				ts := unix.Timespec{Sec: sec, Nsec: nsec}
				err := unix.UtimesNanoAt(unix.AT_FDCWD, p.at("x"), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
				st := stat(p.t, p.at("x"))
				p.call(err, "%s %d.%09d: %v %v", kind, sec, nsec, st.Atim, st.Mtim)
			}
		}
		must(p.t, os.Remove(p.at("x")))
	}
}

// birthTime asks statx(2) for everything there is.
func birthTime(p *trace) {
	for _, kind := range kinds {
		p.make(kind, p.at("x"), 0o644, root)
		var born unix.Statx_t
		must(p.t, unix.Statx(unix.AT_FDCWD, p.at("x"), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BTIME, &born))
		p.log("born in this hour: %v", time.Since(time.Unix(born.Btime.Sec, 0)) < time.Hour)
		tick()
		must(p.t, unix.Lchown(p.at("x"), 5, 6))
		for _, mask := range []int{unix.STATX_BTIME, unix.STATX_BASIC_STATS, unix.STATX_ALL, 0} {
			for _, flags := range []int{0, unix.AT_STATX_FORCE_SYNC, unix.AT_STATX_DONT_SYNC} {
				var st unix.Statx_t
				err := unix.Statx(unix.AT_FDCWD, p.at("x"), flags|unix.AT_SYMLINK_NOFOLLOW, mask, &st)
				btime := "without btime"
				if uint32(mask)&st.Mask&unix.STATX_BTIME != 0 {
					btime = fmt.Sprint("btime stays ", st.Btime == born.Btime)
				}
				p.call(err, "statx %#x %#x of %s: %s, mode %o owner %d:%d rdev %d:%d", mask, flags, kind, btime,
					st.Mode, st.Uid, st.Gid,
					st.Rdev_major, st.Rdev_minor)
			}
		}
		must(p.t, os.Remove(p.at("x")))
	}
	// It stays.
	p.make("file", p.at("x"), 0o644, root)
	born := func() (st unix.Statx_t) {
		must(p.t, unix.Statx(unix.AT_FDCWD, p.at("x"), 0, unix.STATX_BTIME, &st))
		return st
	}
	before := born().Btime
	must(p.t, os.WriteFile(p.at("x"), []byte("bytes"), 0o644))
	must(p.t, unix.Chmod(p.at("x"), 0o600))
	must(p.t, unix.Lutimes(p.at("x"), []unix.Timeval{{Sec: 1}, {Sec: 2}}))
	p.log("birth time stays: %v", born().Btime == before)
}

// tmpfiles makes files without names and gives them some.
func tmpfiles(p *trace) {
	for _, u := range []user{root, nobody} {
		p.make("dir", p.at("d"), 0o777, root)
		for _, flags := range []int{0, unix.O_EXCL} {
			for _, access := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR} {
				u.do(p.t, func() { tmpfile(p, fmt.Sprintf("%#x %d by %v", flags, access, u), flags|access) })
			}
		}
		p.clean()
	}
}

func tmpfile(p *trace, how string, flags int) {
	fd, err := unix.Open(p.at("d"), unix.O_TMPFILE|flags, 0o640)
	p.call(err, "tmpfile %s", how)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	p.call(errOf(unix.Write(fd, []byte("bytes"))), "write")
	var st unix.Stat_t
	must(p.t, unix.Fstat(fd, &st))
	p.log("mode %o links %d size %d owner %d:%d", st.Mode, st.Nlink, st.Size, st.Uid, st.Gid)
	target, err := os.Readlink(fmt.Sprint("/proc/self/fd/", fd))
	p.call(err, "its link ends in (deleted): %v", strings.HasSuffix(target, "(deleted)"))
	p.tree()
	link := func(name string) {
		p.call(unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", fd), unix.AT_FDCWD, p.at("d", name),
			unix.AT_SYMLINK_FOLLOW), "link to %s", name)
	}
	link("a")
	link("a")
	link("b")
	p.tree()
	b, err := os.ReadFile(p.at("d/b"))
	p.call(err, "it reads %q", b)
	_ = os.Remove(p.at("d/a"))
	_ = os.Remove(p.at("d/b"))
	link("c")
	p.tree()
	_ = os.Remove(p.at("d/c"))
}

// directories reads directories in all ways.
func directories(p *trace) {
	for _, kind := range kinds {
		p.make(kind, p.at(kind), 0o644, root)
	}
	p.log("%s", run(p.t, p.dir, "python3", "-c", `
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
class dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_ulong), ("off", ctypes.c_long), ("reclen", ctypes.c_ushort), ("type", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]
libc.readdir.restype = ctypes.POINTER(dirent)
d = ctypes.c_void_p(libc.opendir(b"."))
def read():
    e = libc.readdir(d)
    return (e.contents.name.decode(), e.contents.type, e.contents.ino == os.lstat(e.contents.name).st_ino) if e else None
def everything():
    out = []
    while (e := read()): out.append(e)
    return out
first = everything()
print(first[:2], sorted(first))
libc.rewinddir(d)
positions = []
while True:
    at = libc.telldir(d)
    e = read()
    if not e: break
    positions.append((at, e))
print("same twice", [e for _, e in positions] == first)
for at, e in reversed(positions):
    libc.seekdir(d, ctypes.c_long(at))
    print("back to", read() == e)
libc.seekdir(d, ctypes.c_long(positions[4][0]))
before = [e for _, e in positions[4:]]
print("the rest from there", everything() == before)
open("new", "w").close()
libc.rewinddir(d)
print("a new name after rewinding", "new" in [e[0] for e in everything()])
os.unlink("new")
libc.rewinddir(d)
print("a name removed after rewinding", "new" in [e[0] for e in everything()])
libc.seekdir(d, ctypes.c_long(positions[3][0]))
for _, e in positions[3:]:
    if e[1] != 4: os.unlink(e[0])
print("removed ahead", [e for e in everything() if e[1] != 4 and os.path.lexists(e[0])])
print("seek to nowhere", os.lseek(libc.dirfd(d), 0, os.SEEK_SET))
`))
}

// handles opens files by handle.
func handles(p *trace) {
	p.make("dir", p.at("d"), 0o755, root)
	for _, kind := range kinds {
		path := p.at("d", kind)
		p.make(kind, path, 0o644, root)
		handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		p.call(err, "handle of %s", kind)
		if err != nil {
			continue
		}
		mount, err := unix.Open(p.dir, unix.O_RDONLY, 0)
		must(p.t, err)
		reopen := func(what string, flags int) {
			fd, err := unix.OpenByHandleAt(mount, handle, flags|unix.O_NONBLOCK)
			p.call(err, "open %s by handle %s %#x", kind, what, flags)
			if err == nil {
				var st unix.Stat_t
				must(p.t, unix.Fstat(fd, &st))
				p.log("mode %o links %d", st.Mode, st.Nlink)
				unix.Close(fd)
			}
		}
		reopen("", unix.O_RDONLY)
		reopen("", unix.O_PATH)
		nobody.do(p.t, func() { reopen("as nobody", unix.O_RDONLY) })
		must(p.t, os.Rename(path, p.at("moved")))
		reopen("moved", unix.O_RDONLY)
		must(p.t, os.Remove(p.at("moved")))
		// Whoever looks around in /proc meanwhile can keep the inode for a moment.
		within(2*time.Second, func() bool {
			fd, err := unix.OpenByHandleAt(mount, handle, unix.O_PATH)
			if err == nil {
				unix.Close(fd)
			}
			return err != nil
		})
		reopen("removed", unix.O_RDONLY)
		unix.Close(mount)
	}
	_, _, err := unix.NameToHandleAt(unix.AT_FDCWD, p.at("d"), 0x8)
	p.call(err, "handle with an unknown flag")
}

// inotify watches a directory and a file, and what happens to them.
func inotify(p *trace) {
	p.make("file", p.at("f"), 0o644, root)
	p.make("dir", p.at("d"), 0o755, root)
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	must(p.t, err)
	defer unix.Close(fd)
	for _, name := range []string{".", "f", "d"} {
		must(p.t, errOf(unix.InotifyAddWatch(fd, p.at(name), unix.IN_ALL_EVENTS)))
	}
	events := func(what string) {
		b := make([]byte, 64<<10)
		n, err := unix.Read(fd, b)
		line := what + ":"
		for b = b[:max(n, 0)]; len(b) > 0; {
			mask, length := nativeUint32(b[4:]), nativeUint32(b[12:])
			line += fmt.Sprintf(" %d:%#x:%s", nativeUint32(b), mask, strings.TrimRight(string(b[16:16+length]), "\x00"))
			b = b[16+length:]
		}
		p.call(err, "%s", line)
	}
	for _, c := range []struct {
		what string
		f    func() error
	}{
		{"create", func() error { return openClose(p.at("new"), unix.O_CREAT|unix.O_WRONLY, 0o644) }},
		{"write", func() error { return os.WriteFile(p.at("f"), []byte("bytes"), 0o644) }},
		{"read", func() error { return errOf(os.ReadFile(p.at("f"))) }},
		{"append", func() error {
			return onFD(p.at("f"), unix.O_WRONLY|unix.O_APPEND, func(fd int) error {
				return errOf(unix.Write(fd, []byte("x")))
			})
		}},
		{"truncate", func() error { return os.Truncate(p.at("f"), 2) }},
		{"fallocate", func() error {
			return onFD(p.at("f"), unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, 0, 0, 10) })
		}},
		{"chmod", func() error { return os.Chmod(p.at("f"), 0o600) }},
		{"chown", func() error { return os.Chown(p.at("f"), 1, 1) }},
		{"utimes", func() error { return os.Chtimes(p.at("f"), time.Unix(1, 0), time.Unix(2, 0)) }},
		{"setxattr", func() error { return unix.Setxattr(p.at("f"), "user.a", []byte("b"), 0) }},
		{"link", func() error { return os.Link(p.at("f"), p.at("l")) }},
		{"unlink of a link", func() error { return os.Remove(p.at("l")) }},
		{"rename", func() error { return os.Rename(p.at("f"), p.at("g")) }},
		{"rename over", func() error { return os.Rename(p.at("new"), p.at("g")) }},
		{"mkdir", func() error { return os.Mkdir(p.at("d/sub"), 0o755) }},
		{"rename of a directory", func() error { return os.Rename(p.at("d/sub"), p.at("sub")) }},
		{"rmdir", func() error { return os.Remove(p.at("sub")) }},
		{"list", func() error { return errOf(os.ReadDir(p.dir)) }},
		{"symlink", func() error { return os.Symlink("x", p.at("d/s")) }},
		{"unlink", func() error { return os.Remove(p.at("g")) }},
		{"rm -r", func() error { return os.RemoveAll(p.at("d")) }},
	} {
		err := c.f()
		events(fmt.Sprint(c.what, " ", errnoName(err)))
	}
}

func nativeUint32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// mountpoint removes and moves what something is mounted on, which is EBUSY, and goes out of the file system, EXDEV.
func mountpoint(p *trace) {
	p.make("dir", p.at("m"), 0o755, root)
	p.make("dir", p.at("d"), 0o755, root)
	p.make("file", p.at("f"), 0o644, root)
	must(p.t, unix.Mount("none", p.at("m"), "tmpfs", 0, ""))
	must(p.t, unix.Mount(p.at("f"), p.at("f"), "", unix.MS_BIND, ""))
	p.call(unix.Rmdir(p.at("m")), "rmdir")
	p.call(unix.Unlink(p.at("m")), "unlink of a directory")
	p.call(unix.Unlink(p.at("f")), "unlink of a file")
	p.call(unix.Rename(p.at("m"), p.at("n")), "rename")
	p.call(unix.Rename(p.at("d"), p.at("m")), "rename over")
	p.call(unix.Rename(p.at("f"), p.at("g")), "rename of a file")
	p.call(unix.Renameat2(unix.AT_FDCWD, p.at("d"), unix.AT_FDCWD, p.at("m"), unix.RENAME_EXCHANGE), "exchange")
	p.make("file", p.at("m/inside"), 0o644, root)
	p.call(unix.Rename(p.at("m/inside"), p.at("x")), "rename out")
	p.call(unix.Link(p.at("m/inside"), p.at("x")), "link out")
	p.call(unix.Rename(p.at("d"), p.at("m/d")), "rename in")
	must(p.t, unix.Unmount(p.at("m"), 0))
	must(p.t, unix.Unmount(p.at("f"), 0))
	self := filepath.Dir(p.dir)
	p.call(unix.Rmdir(self), "rmdir of the mount")
	p.call(unix.Rename(self, self+"2"), "rename of the mount")
	p.tree()
}
