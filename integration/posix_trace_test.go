package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A trace is a scenario that writes down what the calls it makes answer and leave behind, in place of saying what they
// should. Every scenario runs on a tmpfs first, and what it wrote there is what it must write on memfs, line by line. So
// whole products of calls, arguments and users are compared without one expectation written by hand.
type trace struct {
	t     *testing.T
	dir   string // empty at first, for the scenario alone; anybody may look into it and nobody but root write
	lines []string
}

// traceScenarios are all scenarios by name. A scenario may not write down what two runs on one file system would answer
// differently: inode numbers, times as such, the order of names that differs by design.
var traceScenarios = map[string]func(p *trace){}

// aboutPages are those that files' pages matter to, which are repeated while everything is trimmed.
var aboutPages = map[string]bool{}

// scenarios adds scenarios; the files of them call it when the test binary starts.
func scenarios(pages bool, more map[string]func(p *trace)) bool {
	for name, f := range more {
		if traceScenarios[name] != nil {
			panic("two scenarios named " + name)
		}
		traceScenarios[name] = f
		aboutPages[name] = pages
	}
	return true
}

// forbidden are the lines that FUSE does not let us write as tmpfs does: what tmpfs says, and what memfs says in its
// place. docs/posix.md has the reason of each. A line that is here and does not differ fails the test as well.
var forbidden = map[string]map[string]string{
	"Fifos": {
		// FUSE has its own times for regular files and directories alone.
		"write moved Fifos: fifo:cm: ok": "write moved Fifos: fifo:: ok",
	},
	"Ioctls": {
		"FIBMAP: EINVAL":                "FIBMAP: ok", // 0, from the host kernel
		"F_GET_SEALS: ok":               "F_GET_SEALS: EINVAL",
		"FALLOC_FL_ZERO_RANGE: ENOTSUP": "FALLOC_FL_ZERO_RANGE: ok", // more than tmpfs has
		"FS_IOC_GETFLAGS 0x0: ok":       "FS_IOC_GETFLAGS 0x0: ENOTTY",
		"FS_IOC_SETFLAGS nodump: ok":    "FS_IOC_SETFLAGS nodump: ENOTTY",
	},
	"MapBeyondEnd": {
		// POSIX wants zeros where a file grows; tmpfs shows what was stored past the old end.
		"past the old end: 99": "past the old end: 0",
	},
	"TimesMoved": {
		// The host kernel owns the times of a regular file, and moves none where the size stays.
		"same truncate moved d: x:cm: ok": "same truncate moved d: x:: ok",
		// POSIX wants it so; it is tmpfs that leaves it out.
		"store moved d: x:: ok": "store moved d: x:cm: ok",
	},
}

// TestPosixTraces runs every scenario on a tmpfs, then on memfs, then those about pages on the smallest memfs there is
// while everything is trimmed all the time.
func TestPosixTraces(t *testing.T) {
	want := map[string][]string{}
	names := slices.Sorted(maps.Keys(traceScenarios))
	t.Run("tmpfs", func(t *testing.T) {
		dir := mountTmpfs(t, posixTmpfs)
		for _, name := range names {
			t.Run(name, func(t *testing.T) { want[name] = record(t, dir, name) })
		}
	})
	compare := func(t *testing.T, names []string, dir string, after func()) {
		for _, name := range names {
			t.Run(name, func(t *testing.T) {
				sameTrace(t, forbidden[name], want[name], record(t, dir, name))
				after()
			})
		}
	}
	inodes := fmt.Sprint("--nr-inodes=", posixInodes)
	t.Run("memfs", func(t *testing.T) {
		m := mountMemfs(t, options{memory: posixMemory, pageFile: posixPageFile, flags: []string{inodes}})
		compare(t, names, m.dir, m.check)
	})
	t.Run("memfs[trim]", func(t *testing.T) {
		m := mountMemfs(t, options{memory: "16M", pageFile: "112M", flags: []string{inodes}})
		stop, done := m.trimLoop(20*time.Millisecond), 0
		compare(t, slices.DeleteFunc(names, func(name string) bool { return !aboutPages[name] }), m.dir, func() { done++ })
		if stop() == 0 && done > 0 {
			t.Error("nothing was trimmed")
		}
	})
}

// record runs one scenario in a directory of its own.
func record(t *testing.T, base, name string) []string {
	dir := filepath.Join(base, name)
	must(t, os.Mkdir(dir, 0o755))
	p := &trace{t: t, dir: dir}
	old := unix.Umask(0o022)
	traceScenarios[name](p)
	unix.Umask(old)
	must(t, os.RemoveAll(dir))
	if len(p.lines) == 0 {
		t.Error("the scenario wrote nothing down")
	}
	return p.lines
}

const maxDifferences = 12 // lines shown

// sameTrace fails the test for the first lines that differ and are not known to.
func sameTrace(t *testing.T, known map[string]string, want, got []string) {
	t.Helper()
	if len(want) != len(got) {
		t.Errorf("%d lines, want %d", len(got), len(want))
	}
	met, failures := map[string]bool{}, 0
	for i := range min(len(want), len(got)) {
		line := want[i]
		if other, ok := known[line]; ok {
			line, met[line] = other, true
		}
		if got[i] == line {
			continue
		}
		if failures++; failures <= maxDifferences {
			t.Errorf("line %d\n got %s\nwant %s", i, got[i], line)
		}
	}
	for line := range known {
		if !met[line] && failures == 0 {
			t.Errorf("tmpfs does not say any more: %s", line)
		}
	}
	if failures > maxDifferences {
		t.Errorf("and %d more lines", failures-maxDifferences)
	}
}

// at is a path in the scenario's directory.
func (p *trace) at(elem ...string) string { return filepath.Join(append([]string{p.dir}, elem...)...) }

// log writes a line down. The directory itself is no part of it.
func (p *trace) log(format string, args ...any) {
	p.lines = append(p.lines, strings.ReplaceAll(fmt.Sprintf(format, args...), p.dir, "DIR"))
}

// call writes down what a call answered.
func (p *trace) call(err error, format string, args ...any) {
	p.log("%s: %s", fmt.Sprintf(format, args...), errnoName(err))
}

// errnoName is ENOENT and its like, or ok.
func errnoName(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// show writes down what lstat says about a path, but for times and numbers.
func (p *trace) show(path string) { p.log("%s", p.describe(path)) }

func (p *trace) describe(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return path + ": " + errnoName(err)
	}
	size := fmt.Sprint(st.Size)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		size = "-" // counts entries on tmpfs
	}
	return fmt.Sprintf("%s: mode %o owner %d:%d links %d size %s rdev %#x", path, st.Mode, st.Uid, st.Gid, st.Nlink,
		size, st.Rdev)
}

// tree writes down everything below the scenario's directory.
func (p *trace) tree() {
	for _, line := range p.describeTree() {
		p.log("  %s", line)
	}
}

func (p *trace) describeTree() (lines []string) {
	_ = filepath.WalkDir(p.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			lines = append(lines, fmt.Sprintf("walk %s: %s", path, errnoName(err)))
			return nil
		}
		line := p.describe(path)
		if e.Type()&os.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			line += fmt.Sprintf(" -> %s %s", target, errnoName(err))
		}
		lines = append(lines, line)
		return nil
	})
	return lines
}

// onTree makes calls on a tree that each of them finds as build makes it, and writes down what they leave if that is
// anything else.
func (p *trace) onTree(build func()) func(call func()) {
	var fresh []string
	return func(call func()) {
		if fresh == nil {
			build()
			fresh = p.describeTree()
		}
		call()
		if now := p.describeTree(); !slices.Equal(now, fresh) {
			p.tree()
			p.clean()
			must(p.t, os.Chmod(p.dir, 0o755))
			must(p.t, os.Chown(p.dir, 0, 0))
			fresh = nil
		}
	}
}

// clean empties the directory.
func (p *trace) clean() {
	entries, err := os.ReadDir(p.dir)
	must(p.t, err)
	for _, e := range entries {
		must(p.t, os.RemoveAll(p.at(e.Name())))
	}
}

// user is whom a part of a scenario runs as.
type user struct {
	uid, gid int
	groups   []int
}

func (u user) String() string {
	if u.uid == 0 {
		return "root"
	}
	return fmt.Sprintf("%d:%d+%v", u.uid, u.gid, u.groups)
}

var (
	root   = user{}
	nobody = user{uid: 65534, gid: 65534}
	other  = user{uid: 65533, gid: 65533}
)

// do runs f as that user, on a thread of its own, whose credentials, umask and working directory end with it.
func (u user) do(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		err := errors.New("the thread ended early")
		defer func() { done <- err }()
		runtime.LockOSThread() // and never unlocked: the thread is not used again
		if err = u.become(); err == nil {
			f()
		}
	}()
	if err := <-done; err != nil {
		t.Fatalf("as %v: %v", u, err)
	}
}

// become changes the calling thread, and no other of the process.
func (u user) become() error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if u.uid == 0 {
		return nil
	}
	groups := make([]uint32, len(u.groups)+1)
	for i, g := range u.groups {
		groups[i] = uint32(g)
	}
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, uintptr(len(u.groups)), addressOf(&groups[0])},
		{unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid)},
		{unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid)},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return errno
		}
	}
	runtime.KeepAlive(groups)
	return nil
}

// kinds are the types of node, by the name that scenarios give them.
var kinds = []string{"file", "dir", "link", "fifo", "sock", "char", "block"}

// make makes a node of a kind with permissions and an owner.
func (p *trace) make(kind, path string, perm uint32, owner user) {
	p.t.Helper()
	var err error
	switch kind {
	case "file":
		err = unix.Mknod(path, unix.S_IFREG|0o600, 0)
	case "dir":
		err = unix.Mkdir(path, 0o700)
	case "link":
		err = unix.Symlink("target", path)
	case "fifo":
		err = unix.Mkfifo(path, 0o600)
	case "sock":
		err = unix.Mknod(path, unix.S_IFSOCK|0o600, 0)
	case "char":
		err = unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) // null
	case "block":
		err = unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(250, 251))) // no driver has it
	default:
		err = fmt.Errorf("no kind %s", kind)
	}
	must(p.t, err)
	must(p.t, unix.Lchown(path, owner.uid, owner.gid))
	if kind != "link" {
		must(p.t, unix.Chmod(path, perm))
	}
}

// moved writes down which times of the paths a call changed: c for ctime, m for mtime. atime is for other tests: the
// kernel leaves it to a FUSE file system, which does not see what is read from the kernel's cache.
func (p *trace) moved(paths []string, f func() error, format string, args ...any) {
	p.t.Helper()
	before := make([]unix.Stat_t, len(paths))
	for i, path := range paths {
		_ = unix.Lstat(path, &before[i])
	}
	tick()
	err := f()
	line := ""
	for i, path := range paths {
		var now unix.Stat_t
		_ = unix.Lstat(path, &now)
		line += " " + filepath.Base(path) + ":"
		if now.Ino != before[i].Ino {
			line += "other"
			continue
		}
		if now.Ctim != before[i].Ctim {
			line += "c"
		}
		if now.Mtim != before[i].Mtim {
			line += "m"
		}
	}
	p.call(err, "%s moved%s", fmt.Sprintf(format, args...), line)
}

// tick waits until the clock that the kernel takes times of files from has moved on.
func tick() {
	now := func() (ts unix.Timespec) {
		_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts)
		return ts
	}
	for start := now(); now() == start; {
		time.Sleep(500 * time.Microsecond)
	}
}

// eachSubset calls f for every sum of some of the bits.
func eachSubset(bits []int, f func(sum int)) {
	for set := range 1 << len(bits) {
		sum := 0
		for i, bit := range bits {
			if set&(1<<i) != 0 {
				sum |= bit
			}
		}
		f(sum)
	}
}
