package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSectionFiles: .proc/sections is a directory of files that programs share memory by, and of nothing else.
func TestSectionFiles(t *testing.T) {
	m := mountMemfs(t, options{})
	dir := m.path(".proc/sections")
	name := filepath.Join(dir, "ring")
	fd, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o640)
	must(t, err)
	defer fd.Close()
	must(t, fd.Truncate(3*4096))
	mem, err := unix.Mmap(int(fd.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(mem[4096:], "shared")
	if got := mustRead(t, name); len(got) != 3*4096 || string(got[4096:4102]) != "shared" {
		t.Errorf("read %d bytes, %q", len(got), got[4096:4102])
	}
	must(t, unix.Munmap(mem))
	if names := namesIn(t, dir); !slices.Equal(names, []string{"ring"}) {
		t.Errorf("listed are %q", names)
	}
	if names := namesIn(t, m.path(".proc")); !slices.Contains(names, "sections") {
		t.Errorf(".proc lists %q", names)
	}
	if info := string(mustRead(t, m.path(".proc/files/.proc/sections/ring/info"))); !strings.Contains(info, "12288") {
		t.Errorf("info says\n%s", info)
	}
	if st := stat(t, name); st.Mode&0o7777 != 0o640 {
		t.Errorf("the mode is %o", st.Mode)
	}

	must(t, os.WriteFile(m.path("file"), nil, 0o644))
	wantErrno(t, "a directory of sections", os.Mkdir(filepath.Join(dir, "d"), 0o755), unix.EPERM)
	wantErrno(t, "a symlink among sections", os.Symlink("x", filepath.Join(dir, "l")), unix.EPERM)
	wantErrno(t, "a fifo among sections", unix.Mkfifo(filepath.Join(dir, "f"), 0o644), unix.EPERM)
	wantErrno(t, "moving a section out", os.Rename(name, m.path("ring")), unix.EXDEV)
	wantErrno(t, "moving a file in", os.Rename(m.path("file"), filepath.Join(dir, "file")), unix.EXDEV)
	wantErrno(t, "linking a section out", os.Link(name, m.path("ring")), unix.EXDEV)
	wantErrno(t, "another name for a section", os.Rename(name, filepath.Join(dir, "other")), unix.EPERM)
	wantErrno(t, "removing the directory", os.Remove(dir), unix.EPERM)
	wantErrno(t, "a process called sections", os.Mkdir(dir, 0o755), unix.EEXIST)

	asUser := func(script string) error {
		cmd := asNobody(exec.Command("sh", "-c", script))
		cmd.Dir = dir
		return cmd.Run()
	}
	if err := asUser("echo x > mine && cat mine"); err != nil {
		t.Errorf("a user's own section: %v", err)
	}
	for _, forbidden := range []string{"cat ring", "echo > ring", "rm -f ring"} {
		if err := asUser(forbidden); err == nil {
			t.Errorf("%s: worked for another user", forbidden)
		}
	}
	must(t, os.Remove(name))
	if _, err := os.Stat(name); !os.IsNotExist(err) {
		t.Errorf("after unlink: %v", err)
	}
}

func namesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestSectionDialogues: nothing is left of the dialogues about sections, views and copy-on-write, neither names nor memory.
func TestSectionDialogues(t *testing.T) {
	m := mountMemfs(t, options{})
	before := m.counters("meminfo").get(t, "Committed_AS")
	args := []string{"run", "--quiet", "-m", m.dir}
	for _, file := range []string{"sections", "views", "cow", "multi-process", "rules-image"} {
		script := filepath.Join(scratch(t), file)
		must(t, os.WriteFile(script, mustRead(t, "../mm/win32/testdata/"+file+".txt"), 0o644))
		args = append(args, script)
	}
	if out, diagnostics, status := verb(t, "", args...); status != 0 || out != "" {
		t.Errorf("exit status %d\n%s%s", status, out, diagnostics)
	}
	if names := namesIn(t, m.path(".proc/sections")); len(names) > 0 {
		t.Errorf("sections that no process has open are still there: %q", names)
	}
	for _, name := range namesIn(t, m.dir) {
		must(t, os.Remove(m.path(name)))
	}
	m.wantCommit(t, before)
	wantVerb(t, m.dir, "^ok\n$", "check")
}

// wantCommit waits until so many kB are committed again: large files are given back beside the requests.
func (m *mount) wantCommit(t *testing.T, want uint64) {
	t.Helper()
	got := uint64(0)
	if !within(20*time.Second, func() bool { got = m.counters("meminfo").get(t, "Committed_AS"); return got <= want }) {
		t.Errorf("%d kB are committed, want %d", got, want)
	}
}
