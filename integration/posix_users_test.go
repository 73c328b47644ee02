package integration

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

var _ = scenarios(false, map[string]func(p *trace){
	"SearchAndWrite": searchAndWrite,
	"StickyRules":    stickyRules,
	"ChmodRules":     chmodRules,
	"ChownRules":     chownRules,
	"ChownNothing":   chownNothing,
	"NewNodes":       newNodes,
	"TimesRules":     timesRules,
	"AccessBits":     accessBits,
	"SetIDOnWrite":   setIDOnWrite,
})

// users are everybody that a node of nobody, with group 65534, can be used by.
var users = []user{
	root, nobody, other,
	{uid: 65533, gid: 65534},
	{uid: 65533, gid: 65533, groups: []int{65532, 65534}},
	{uid: 65534, gid: 65533, groups: []int{65532}},
}

// searchAndWrite makes every call on a path whose directory lacks permissions.
func searchAndWrite(p *trace) {
	build := func(perm uint32) func() {
		return func() {
			p.make("dir", p.at("d"), 0o755, nobody)
			for _, kind := range kinds {
				p.make(kind, p.at("d", kind), 0o777, nobody)
			}
			must(p.t, unix.Chmod(p.at("d"), perm))
			p.make("file", p.at("file"), 0o666, nobody)
			p.make("dir", p.at("empty"), 0o777, nobody)
			must(p.t, unix.Chmod(p.dir, 0o777))
		}
	}
	for _, perm := range []uint32{0o777, 0o666, 0o555, 0o333, 0o111, 0o070} {
		try := p.onTree(build(perm))
		for _, u := range []user{nobody, other, users[4]} {
			for _, c := range pathCalls {
				if c.name == "execve" || c.name == "chdir" { // these run in a thread of their own
					continue
				}
				for _, name := range []string{"none", "file", "dir", "link"} {
					try(func() {
						var err error
						u.do(p.t, func() { err = c.do(p, p.at("d", name)) })
						p.call(err, "directory %o: %s of %s by %v", perm, c.name, name, u)
					})
				}
			}
		}
		p.clean()
	}
}

// stickyRules removes and renames in sticky directories, with all combinations of owners.
func stickyRules(p *trace) {
	owners := []user{root, nobody, other}
	for _, perm := range []uint32{0o777, 0o1777, 0o1770} {
		for _, dirOwner := range owners {
			for _, owner := range owners {
				for _, kind := range []string{"file", "dir"} {
					stickyDirectory(p, perm, dirOwner, owner, kind)
				}
			}
		}
	}
}

// stickyDirectory tries everything that takes a name of a directory away.
func stickyDirectory(p *trace, perm uint32, dirOwner, owner user, kind string) {
	build := func() {
		p.make("dir", p.at("sticky"), perm, dirOwner)
		p.make(kind, p.at("sticky/x"), 0o777, owner)
		p.make("dir", p.at("free"), 0o777, root)
		p.make(kind, p.at("free/y"), 0o777, nobody)
	}
	try := p.onTree(build)
	for _, u := range []user{nobody, users[4]} {
		for _, c := range []struct {
			what string
			f    func() error
		}{
			{"unlink", func() error { return unix.Unlink(p.at("sticky/x")) }},
			{"rmdir", func() error { return unix.Rmdir(p.at("sticky/x")) }},
			{"from", func() error { return unix.Rename(p.at("sticky/x"), p.at("free/z")) }},
			{"within", func() error { return unix.Rename(p.at("sticky/x"), p.at("sticky/z")) }},
			{"over", func() error { return unix.Rename(p.at("free/y"), p.at("sticky/x")) }},
			{"out over", func() error { return unix.Rename(p.at("sticky/x"), p.at("free/y")) }},
			{"exchange", func() error {
				return unix.Renameat2(unix.AT_FDCWD, p.at("free/y"), unix.AT_FDCWD, p.at("sticky/x"), unix.RENAME_EXCHANGE)
			}},
			{"link", func() error { return unix.Link(p.at("sticky/x"), p.at("sticky/z")) }},
			{"open", func() error { return openClose(p.at("sticky/x"), unix.O_CREAT|unix.O_WRONLY, 0o644) }},
		} {
			try(func() {
				var err error
				u.do(p.t, func() { err = c.f() })
				p.call(err, "%o of %v, %s of %v: %s by %v", perm, dirOwner, kind, owner, c.what, u)
			})
		}
	}
	p.clean()
}

// chmodRules changes modes as everybody.
func chmodRules(p *trace) {
	for _, kind := range []string{"file", "dir", "fifo", "sock", "char"} {
		for _, owner := range []user{nobody, {uid: 65534, gid: 77}} {
			p.make(kind, p.at("x"), 0o640, owner)
			for _, u := range users {
				for _, mode := range []uint32{0o7777, 0o2755, 0o4755, 0o1644, 0o2644, 0, 0o644} {
					u.do(p.t, func() { p.call(unix.Chmod(p.at("x"), mode), "chmod %o of %s by %v", mode, kind, u) })
					p.show(p.at("x"))
					must(p.t, unix.Chmod(p.at("x"), 0o640))
				}
				u.do(p.t, func() {
					p.call(unix.Fchmodat(unix.AT_FDCWD, p.at("x"), 0o600, unix.AT_SYMLINK_NOFOLLOW),
						"lchmod of %s by %v", kind, u)
				})
			}
			p.clean()
		}
	}
	p.make("link", p.at("l"), 0, root)
	p.call(unix.Fchmodat(unix.AT_FDCWD, p.at("l"), 0o600, unix.AT_SYMLINK_NOFOLLOW), "lchmod of a link")
	p.show(p.at("l"))
}

// chownRules changes owners as everybody, with bits set that go.
func chownRules(p *trace) {
	ids := []int{-1, 65533, 65534, 65532, 0, 12345}
	for _, kind := range []string{"file", "dir", "link", "fifo"} {
		for _, perm := range []uint32{0o6755, 0o6555, 0o2766, 0o7777} {
			for _, u := range []user{root, nobody, other, users[5]} {
				for _, uid := range ids {
					for _, gid := range ids {
						if uid < 0 && gid < 0 {
							continue // ChownNothing
						}
						p.make(kind, p.at("x"), perm, nobody)
						var err error
						u.do(p.t, func() { err = unix.Lchown(p.at("x"), uid, gid) })
						p.call(err, "%s after chown to %d:%d of %s %o by %v", p.describe(p.at("x")), uid, gid, kind, perm, u)
						must(p.t, os.RemoveAll(p.at("x")))
					}
				}
			}
		}
	}
}

// chownNothing gives chown neither a user nor a group.
func chownNothing(p *trace) {
	for _, kind := range []string{"file", "dir", "link", "fifo"} {
		for _, perm := range []uint32{0o644, 0o6755, 0o2766} {
			for _, u := range []user{root, nobody, other} {
				p.make(kind, p.at("x"), perm, nobody)
				var err error
				u.do(p.t, func() { err = unix.Lchown(p.at("x"), -1, -1) })
				p.call(err, "%s %o after chown of nothing by %v: %o", kind, perm, u, stat(p.t, p.at("x")).Mode)
				must(p.t, os.RemoveAll(p.at("x")))
			}
		}
	}
}

// newNodes makes nodes of each kind in directories of each kind: whose they are, and which bits they have.
func newNodes(p *trace) {
	for _, dirPerm := range []uint32{0o777, 0o2777, 0o3777} {
		for _, dirGroup := range []int{65534, 77} {
			p.make("dir", p.at("d"), dirPerm, user{uid: 65534, gid: dirGroup})
			for _, u := range users {
				for _, umask := range []int{0, 0o022, 0o777} {
					for _, mode := range []uint32{0o777, 0o7777, 0o2755, 0o2745, 0o4644, 0o000} {
						u.do(p.t, func() { newNode(p, mode, umask, fmt.Sprintf("%o in %o by %v", mode, dirPerm, u)) })
					}
				}
			}
			must(p.t, os.RemoveAll(p.at("d")))
		}
	}
}

func newNode(p *trace, mode uint32, umask int, how string) {
	unix.Umask(umask)
	path := p.at("d/x")
	for _, c := range []struct {
		what string
		err  func() error
	}{
		{"open", func() error { return openClose(path, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, mode) }},
		{"mkdir", func() error { return unix.Mkdir(path, mode) }},
		{"mkfifo", func() error { return unix.Mkfifo(path, mode) }},
		{"mknod file", func() error { return unix.Mknod(path, unix.S_IFREG|mode, 0) }},
		{"mknod sock", func() error { return unix.Mknod(path, unix.S_IFSOCK|mode, 0) }},
		{"mknod char", func() error { return unix.Mknod(path, unix.S_IFCHR|mode, int(unix.Mkdev(259, 1<<20-1))) }},
		{"mknod block", func() error { return unix.Mknod(path, unix.S_IFBLK|mode, int(unix.Mkdev(1, 0))) }},
		{"mknod dir", func() error { return unix.Mknod(path, unix.S_IFDIR|mode, 0) }},
		{"mknod link", func() error { return unix.Mknod(path, unix.S_IFLNK|mode, 0) }},
		{"mknod 0", func() error { return unix.Mknod(path, mode, 0) }},
		{"mknod nothing", func() error { return unix.Mknod(path, 0o170000|mode, 0) }},
		{"symlink", func() error { return unix.Symlink("x", path) }},
		{"tmpfile", func() error {
			fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_RDWR, mode)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Linkat(unix.AT_FDCWD, fmt.Sprint("/proc/self/fd/", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
		}},
	} {
		p.call(c.err(), "umask %o: %s %s", umask, c.what, how)
		p.show(path)
		if unix.Unlink(path) != nil {
			_ = unix.Rmdir(path)
		}
	}
}

// timesRules sets times as everybody.
func timesRules(p *trace) {
	now, omit, given := unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT},
		unix.Timespec{Sec: 5, Nsec: 6}
	bad := unix.Timespec{Sec: 1, Nsec: 1_000_000_000}
	for _, kind := range []string{"file", "dir", "fifo", "link"} {
		for _, perm := range []uint32{0o644, 0o444, 0o666, 0o000} {
			p.make(kind, p.at("x"), perm, nobody)
			for _, u := range users {
				for i, pair := range [][]unix.Timespec{{now, now}, {omit, omit}, {given, given}, {now, omit}, {omit,
					now}, {now, given},
					{omit, given}, {bad, given}, nil} {
					reset := []unix.Timespec{{Sec: 1}, {Sec: 2}}
					must(p.t, unix.UtimesNanoAt(unix.AT_FDCWD, p.at("x"), reset, unix.AT_SYMLINK_NOFOLLOW))
					before := stat(p.t, p.at("x"))
					if i%4 == 0 {
						tick()
					}
					u.do(p.t, func() {
						p.call(utimensat(p.at("x"), pair), "times %d of %s %o by %v", i, kind, perm, u)
					})
					after := stat(p.t, p.at("x"))
					p.log("  atime %s mtime %s ctime moved %v", about(after.Atim), about(after.Mtim),
						i%4 != 0 || before.Ctim != after.Ctim)
				}
			}
			p.clean()
		}
	}
}

// utimensat is utimensat(2) with a pointer that may be NULL.
func utimensat(path string, times []unix.Timespec) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	var at uintptr
	if times != nil {
		at = addressOf(&times[0])
	}
	dir := unix.AT_FDCWD
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(dir), addressOf(name), at, unix.AT_SYMLINK_NOFOLLOW, 0, 0)
	return asError(errno)
}

// about is a time, or "now" for one of this century.
func about(ts unix.Timespec) string {
	if ts.Sec > 1_500_000_000 {
		return "now"
	}
	return fmt.Sprintf("%d.%09d", ts.Sec, ts.Nsec)
}

// accessBits asks access(2), and does what it asks about, for every permission and everybody.
func accessBits(p *trace) {
	for _, kind := range []string{"file", "dir"} {
		for bit := range 12 {
			perm := uint32(1) << bit
			p.make(kind, p.at("x"), perm, nobody)
			for _, u := range users {
				u.do(p.t, func() {
					line := fmt.Sprintf("%s %o by %v:", kind, perm, u)
					for mode := range uint32(8) {
						line += " " + errnoName(unix.Faccessat(unix.AT_FDCWD, p.at("x"), mode, 0))
						line += " " + errnoName(unix.Faccessat2(unix.AT_FDCWD, p.at("x"), mode, unix.AT_EACCESS))
					}
					for _, flags := range []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_TRUNC} {
						line += " " + errnoName(openClose(p.at("x"), flags, 0))
					}
					line += " " + errnoName(unix.Truncate(p.at("x"), 3)) + " " + errnoName(openClose(p.at("x/y"),
						unix.O_CREAT, 0o600))
					line += " " + errnoName(unix.Unlink(p.at("x/y")))
					p.log("%s", line)
				})
			}
			p.show(p.at("x"))
			p.clean()
		}
	}
}

// setIDOnWrite changes the bytes of files with setuid and setgid as everybody.
func setIDOnWrite(p *trace) {
	changes := map[string]func(path string) error{
		"write": func(path string) error {
			return onFD(path, unix.O_WRONLY, func(fd int) error { return errOf(unix.Write(fd, []byte("x"))) })
		},
		"write nothing": func(path string) error {
			return onFD(path, unix.O_WRONLY, func(fd int) error { return errOf(unix.Write(fd, nil)) })
		},
		"append": func(path string) error {
			return onFD(path, unix.O_WRONLY|unix.O_APPEND, func(fd int) error { return errOf(unix.Write(fd, []byte("x"))) })
		},
		"truncate":      func(path string) error { return unix.Truncate(path, 3) },
		"truncate same": func(path string) error { return unix.Truncate(path, 10) },
		"ftruncate": func(path string) error {
			return onFD(path, unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, 3) })
		},
		"O_TRUNC":        func(path string) error { return openClose(path, unix.O_WRONLY|unix.O_TRUNC, 0) },
		"O_TRUNC rdonly": func(path string) error { return openClose(path, unix.O_RDONLY|unix.O_TRUNC, 0) },
		"O_WRONLY alone": func(path string) error { return openClose(path, unix.O_WRONLY, 0) },
		"fallocate": func(path string) error {
			return onFD(path, unix.O_RDWR, func(fd int) error { return unix.Fallocate(fd, 0, 0, 4096) })
		},
		"punch": func(path string) error {
			return onFD(path, unix.O_RDWR, func(fd int) error {
				return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 5)
			})
		},
		"copy_file_range": func(path string) error {
			return onFD(path, unix.O_RDWR, func(fd int) error {
				in, out := int64(0), int64(20)
				return errOf(unix.CopyFileRange(fd, &in, fd, &out, 5, 0))
			})
		},
		"store": func(path string) error {
			return onFD(path, unix.O_RDWR, func(fd int) error {
				m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				if err != nil {
					return err
				}
				m[0]++
				return unix.Munmap(m)
			})
		},
		"direct write": func(path string) error {
			return onFD(path, unix.O_WRONLY|unix.O_DIRECT, func(fd int) error {
				m, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
				if err != nil {
					return err
				}
				defer unix.Munmap(m)
				return errOf(unix.Pwrite(fd, m, 0))
			})
		},
	}
	for _, what := range sortedKeys(changes) {
		for _, perm := range []uint32{0o6777, 0o6767, 0o2777, 0o2767, 0o4777, 0o6666, 0o1777} {
			for _, u := range users {
				p.make("file", p.at("x"), 0o600, root)
				must(p.t, os.WriteFile(p.at("x"), []byte("0123456789"), 0))
				must(p.t, unix.Chown(p.at("x"), nobody.uid, nobody.gid))
				must(p.t, unix.Chmod(p.at("x"), perm))
				must(p.t, unix.Setxattr(p.at("x"), "security.capability", netRaw, 0))
				var err error
				u.do(p.t, func() { err = changes[what](p.at("x")) })
				_, caps := unix.Getxattr(p.at("x"), "security.capability", nil)
				p.call(err, "%s after %s of %o by %v, capability %s", p.describe(p.at("x")), what, perm, u, errnoName(caps))
				must(p.t, os.Remove(p.at("x")))
			}
		}
	}
	// What a program gives a new file is not taken away again, whatever else it asks for.
	must(p.t, unix.Chmod(p.dir, 0o777))
	for _, flags := range []int{0, unix.O_TRUNC, unix.O_EXCL, unix.O_TRUNC | unix.O_APPEND} {
		for _, u := range users {
			var err error
			u.do(p.t, func() { err = openClose(p.at("new"), unix.O_CREAT|unix.O_WRONLY|flags, 0o6775) })
			p.call(err, "%s made with %#x by %v", p.describe(p.at("new")), flags, u)
			must(p.t, os.Remove(p.at("new")))
		}
	}
}

// netRaw is a security.capability that permits CAP_NET_RAW, effective at once: struct vfs_cap_data of version 2.
var netRaw = []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

// onFD opens a file for one call.
func onFD(path string, flags int, f func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}
