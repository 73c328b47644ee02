package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// background mounts with `memfs mount` as a user does, without -f, and returns the directory, the page file's path and
// the daemon's process id. The test ends the mount.
func background(t testing.TB, flags ...string) (dir, pageFile string, pid int) {
	t.Helper()
	needMount(t)
	base := scratch(t)
	dir, pageFile = filepath.Join(base, "mnt"), filepath.Join(base, "page", "file")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.Mkdir(filepath.Dir(pageFile), 0o755))
	t.Cleanup(func() {
		if isMounted(dir) {
			t.Errorf("%s was left mounted", dir)
			if pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	})
	pid = remount(t, dir, pageFile, flags...)
	return dir, pageFile, pid
}

// remount mounts in the background on an existing directory.
func remount(t testing.TB, dir, pageFile string, flags ...string) (pid int) {
	t.Helper()
	args := append([]string{"mount", "--memory", "64M", "--pagefile", pageFile + ",size=256M"}, flags...)
	cmd := exec.Command(memfsBinary, append(args, dir)...)
	cmd.Env = append(os.Environ(), daemonEnv(filepath.Dir(dir))...)
	cmd.WaitDelay = 5 * time.Second // an error if the daemon keeps our end of its output open
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("memfs mount: %v\n%s", err, out)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("memfs mount took %v", took)
	}
	if !isMounted(dir) {
		t.Fatalf("memfs mount returned before %s was mounted\n%s", dir, out)
	}
	if pid = daemonPID(dir); pid == 0 {
		t.Fatal(".proc/version does not name the daemon's pid")
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(comm) != "memfs\n" {
		t.Errorf("top and pgrep know the daemon as %q, %v", comm, err)
	}
	return pid
}

// family is a daemon and its children.
func family(pid int) []int { return append(childrenOf(pid), pid) }

// TestBackground mounts, writes past the memory, and unmounts, in each of the ways there are. Afterwards nothing is left.
func TestBackground(t *testing.T) {
	ways := []struct {
		name string
		end  func(t *testing.T, dir string, pid int)
	}{
		{"memfs umount", func(t *testing.T, dir string, pid int) {
			run(t, "", memfsBinary, "umount", dir)
			if alive(pid) {
				t.Error("the daemon still ran when memfs umount returned")
			}
		}},
		{"umount", func(t *testing.T, dir string, pid int) { run(t, "", "umount", dir) }},
		{"fusermount3 -u", func(t *testing.T, dir string, pid int) { run(t, "", "fusermount3", "-u", dir) }},
		{"SIGTERM", func(t *testing.T, dir string, pid int) { must(t, syscall.Kill(pid, syscall.SIGTERM)) }},
		{"SIGINT", func(t *testing.T, dir string, pid int) { must(t, syscall.Kill(pid, syscall.SIGINT)) }},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			dir, pageFile, pid := background(t)
			if err := writeContent(filepath.Join(dir, "file"), 1, 100<<20); err != nil {
				t.Error(err)
			}
			wantContent(t, filepath.Join(dir, "file"), 1, 100<<20)
			pids := family(pid)
			way.end(t, dir, pid)
			if !within(10*time.Second, func() bool { return !isMounted(dir) && !alive(pid) }) {
				t.Fatalf("10 s later: mounted %v, daemon alive %v", isMounted(dir), alive(pid))
			}
			leftovers(t, dir, pageFile, pids)
		})
	}
}

// TestForegroundSignals ends a mount in front by signal: it unmounts and its exit status is 0.
func TestForegroundSignals(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			m := mountMemfs(t, options{})
			must(t, os.WriteFile(m.path("file"), block(1, 1<<20), 0o644))
			m.check()
			must(t, m.cmd.Process.Signal(signal))
			m.done = true
			m.gone(0)
		})
	}
}

// TestSignalWhileBusy signals a mount that programs still use. It must not hang, lose their data, or stay for ever.
func TestSignalWhileBusy(t *testing.T) {
	m := mountMemfs(t, options{})
	f, err := os.Create(m.path("open"))
	must(t, err)
	_, err = f.Write(block(1, 1<<20))
	must(t, err)
	must(t, m.cmd.Process.Signal(syscall.SIGTERM))
	time.Sleep(500 * time.Millisecond)
	// Whether it waits for the file or has detached the mount: the open file works.
	got := make([]byte, 1<<20)
	if _, err := f.ReadAt(got, 0); err != nil || firstDifference(got, block(1, 1<<20)) >= 0 {
		t.Errorf("after SIGTERM an open file reads %v", err)
	}
	must(t, f.Close())
	m.done = true
	if !within(5*time.Second, func() bool { return !alive(m.pid) }) {
		must(t, m.cmd.Process.Signal(syscall.SIGTERM)) // once more, now that nobody holds it
	}
	m.gone(-1)
}

// TestUmountBusy refuses to unmount under an open file, says so, and leaves the mount as it was.
func TestUmountBusy(t *testing.T) {
	m := mountMemfs(t, options{})
	f, err := os.Create(m.path("open"))
	must(t, err)
	defer f.Close()
	out, err := exec.Command(memfsBinary, "umount", m.dir).CombinedOutput()
	oneLineRefusal(t, "memfs umount of a busy mount", string(out), err, 1, "busy")
	if _, err := f.WriteString("still here"); err != nil {
		t.Error(err)
	}
	m.check()
	must(t, f.Close())

	inner := m.path("inner")
	must(t, os.Mkdir(inner, 0o755))
	must(t, syscall.Mount("none", inner, "tmpfs", 0, "size=1m"))
	out, err = exec.Command(memfsBinary, "umount", m.dir).CombinedOutput()
	oneLineRefusal(t, "memfs umount of a mount that has one in it", string(out), err, 1, inner+" is mounted in it")
	must(t, syscall.Unmount(inner, 0))
}

// TestUmountFromWithin unmounts what the command's own working directory is on.
func TestUmountFromWithin(t *testing.T) {
	dir, _, pid := background(t)
	c := exec.Command(memfsBinary, "umount", ".")
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	if alive(pid) {
		t.Error("the daemon is still there")
	}
}

// TestKilled kills the daemon. Programs get an error and do not hang; nothing keeps the page file's space; the same
// directory can be mounted again.
func TestKilled(t *testing.T) {
	dir, pageFile, pid := background(t)
	if err := writeContent(filepath.Join(dir, "file"), 1, 100<<20); err != nil {
		t.Error(err)
	}
	pids := family(pid)
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	if !within(5*time.Second, func() bool { return !alive(pid) }) {
		t.Fatal("the daemon survives SIGKILL")
	}
	for _, child := range pids {
		if !within(5*time.Second, func() bool { return !alive(child) }) {
			t.Errorf("process %d outlives the daemon: %s", child, procLine(child))
		}
	}
	if holding := fdsUnder(filepath.Dir(pageFile)); len(holding) > 0 {
		t.Errorf("the page file is still open: %v", holding)
	}
	// ECONNABORTED is what a request gets that the kernel was about to send when the connection ended.
	if _, err := os.Stat(filepath.Join(dir, "file")); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
		t.Errorf("stat on the dead mount: %v, want ENOTCONN", err)
	}
	pid = remount(t, dir, pageFile)
	wantEntries(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "again"), block(2, 1<<20), 0o644))
	wantFile(t, filepath.Join(dir, "again"), block(2, 1<<20))
	pids = family(pid)
	run(t, "", memfsBinary, "umount", dir)
	leftovers(t, dir, pageFile, pids)
}

// TestChildKilled kills the daemon's child process: the mount works on, if more slowly, and loses nothing.
func TestChildKilled(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M"})
	must(t, os.WriteFile(m.path("file"), block(1, 4<<20), 0o644)) // whatever starts the child on demand
	m.ctl("trim")
	m.noteChildren()
	for _, pid := range childrenOf(m.pid) {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	if err := writeContent(m.path("more"), 2, 64<<20); err != nil {
		t.Error(err)
	}
	m.ctl("trim")
	wantFile(t, m.path("file"), block(1, 4<<20))
	wantContent(t, m.path("more"), 2, 64<<20)
}

// TestManyMounts has several mounts at once, which share nothing, and mounts and unmounts over and over.
func TestManyMounts(t *testing.T) {
	var mounts []*mount
	for i := range 3 {
		m := mountMemfs(t, options{memory: "32M"})
		if err := writeContent(m.path("file"), i, 48<<20); err != nil {
			t.Error(err)
		}
		mounts = append(mounts, m)
	}
	for i, m := range mounts {
		wantContent(t, m.path("file"), i, 48<<20)
	}
	for _, m := range mounts {
		m.unmount()
	}
	for range short(10, 3) {
		m := mountMemfs(t, options{memory: "32M"})
		must(t, os.WriteFile(m.path("file"), []byte("x"), 0o644))
		m.unmount()
	}
}

// TestPageFileGone shows that the page file has no name while it is in use, that it starts small, and that its space
// returns to the disk.
func TestPageFileGone(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "1G"})
	if left, err := os.ReadDir(filepath.Dir(m.pageFile)); err != nil || len(left) > 0 {
		t.Errorf("the page file has a name while mounted: %v %v", left, err)
	}
	disk := func() (n int64) {
		for _, pid := range family(m.pid) {
			fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
			for _, fd := range fds {
				target, _ := os.Readlink(fd)
				if st := (unix.Stat_t{}); strings.HasPrefix(target, m.base) && unix.Stat(fd, &st) == nil {
					n += st.Blocks * 512
				}
			}
		}
		return n
	}
	if n := disk(); n > 64<<20 {
		t.Errorf("an unused page file takes %d MiB of the disk", n>>20)
	}
	if err := writeContent(m.path("file"), 1, 128<<20); err != nil {
		t.Fatal(err)
	}
	m.pageOut()
	if n := disk(); n < 96<<20 {
		t.Errorf("the page file takes %d MiB of the disk with 128 MiB paged out", n>>20)
	}
	wantContent(t, m.path("file"), 1, 128<<20)
}

// wantEntries fails the test unless a directory lists exactly these names, in any order.
func wantEntries(t testing.TB, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir) // sorted
	if err != nil {
		t.Error(err)
		return
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s lists %q, want %q", dir, got, want)
	}
}
