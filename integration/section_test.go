package integration

import (
	"fmt"
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

// TestNamedFileSection: a section that a process makes with a name over a file of the mount is that file in .proc/sections, the
// same inode, for as long as the name is there.
func TestNamedFileSection(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.Mkdir(m.path("dir"), 0o755))
	must(t, os.WriteFile(m.path("dir/data"), make([]byte, 3*4096), 0o640))
	name := m.path(".proc/sections/box")
	c := m.process(t, "p")
	c.say(`f = CreateFile "/dir/data" GENERIC_READ|GENERIC_WRITE`, `h = CreateFileMapping $f PAGE_READWRITE 0 0 "Local\box"`,
		"v = MapViewOfFile $h FILE_MAP_WRITE 0 0 0", "CloseHandle $f")
	if a, b := stat(t, name), stat(t, m.path("dir/data")); a.Ino != b.Ino || a.Nlink != 2 || a.Mode != b.Mode {
		t.Errorf("the section is inode %d with %d links, the file %d", a.Ino, a.Nlink, b.Ino)
	}
	fd, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer fd.Close()
	mem, err := unix.Mmap(int(fd.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(mem)
	exchange := func(when string, at int) {
		t.Helper()
		mem[at] = 'm'
		c.say(fmt.Sprintf("Write $v+%d 70", at+1))
		m.ctl("trim")
		if got := c.read(fmt.Sprintf("$v+%d", at), 2); string(got) != "mp" {
			t.Errorf("%s the process reads %q", when, got)
		}
		if mem[at+1] != 'p' {
			t.Errorf("%s the mapping has %q", when, mem[at+1])
		}
	}
	exchange("first", 5000)
	if got := mustRead(t, m.path("dir/data"))[5000:5002]; string(got) != "mp" {
		t.Errorf("the file reads %q", got)
	}
	controls := m.path(".proc/files/.proc/sections/box")
	for file, want := range map[string]string{"views": "box", "info": "Views", "pages": "Index", "map": ""} {
		if got := string(mustRead(t, filepath.Join(controls, file))); !strings.Contains(got, want) {
			t.Errorf("%s says\n%s", file, got)
		}
	}

	c.say("w = MapViewOfFileEx $h FILE_MAP_READ 0 0 0x2000 0x50000000", "VirtualProtect $w+0x1000 0x1000 PAGE_NOACCESS")
	if got := string(mustRead(t, m.path(".proc/p/smaps"))); !strings.Contains(got, "50001000-50002000 ---s 00001000 00:00 0                           /dir/data\n") {
		t.Errorf("smaps says\n%s", got)
	}
	c.say("UnmapViewOfFile $w")

	// The file may move, and go; the section's name is still there.
	must(t, os.Rename(m.path("dir/data"), m.path("moved")))
	c.wantReply("GetMappedFileName $v", "OK 0x6 Filename=/moved")
	exchange("renamed,", 100)
	must(t, os.Remove(m.path("moved")))
	exchange("removed,", 200)
	if got := mustRead(t, name)[200:202]; string(got) != "mp" {
		t.Errorf("the removed file reads %q", got)
	}
	c.wantReply("GetMappedFileName $v", "OK 0x13 Filename=/.proc/sections/box")
	c.say("CloseHandle $h")
	if names := namesIn(t, m.path(".proc/sections")); len(names) > 0 {
		t.Errorf("after the last handle there are %q", names)
	}
	exchange("after the last handle,", 300)
	if got := string(mustRead(t, m.path(".proc/p/maps"))); !strings.Contains(got, " (deleted)\n") {
		t.Errorf("maps says\n%s", got)
	}
	if st := new(unix.Stat_t); unix.Fstat(int(fd.Fd()), st) != nil || st.Nlink != 0 {
		t.Errorf("%d links are left", st.Nlink)
	}
	c.say("UnmapViewOfFile $v")

	// A name that a program takes away is gone for processes; one that it has made first is its own.
	must(t, os.WriteFile(m.path("other"), []byte("text"), 0o666))
	c.say(`f = CreateFile "/other" GENERIC_READ`, `h = CreateFileMapping $f PAGE_READONLY 0 0 "box"`)
	if got := string(mustRead(t, name)); got != "text" {
		t.Errorf("the second section reads %q", got)
	}
	must(t, os.Remove(name))
	c.wantReply(`OpenFileMapping FILE_MAP_READ 0 "box"`, "ERR 2 ERROR_FILE_NOT_FOUND")
	must(t, os.WriteFile(name, []byte("program's"), 0o600))
	c.say("CloseHandle $h")
	if got := string(mustRead(t, name)); got != "program's" {
		t.Errorf("the program's section reads %q", got)
	}
	if got := string(mustRead(t, m.path("other"))); got != "text" {
		t.Errorf("the file reads %q", got)
	}

	// Nobody else's file is shown by somebody who could not have linked it.
	must(t, os.Chmod(m.path("other"), 0o644))
	dir := m.path(".proc/user")
	user := asNobody(exec.Command("sh", "-c", `mkdir "$1" && printf '%s\n' 'f = CreateFile "/other" GENERIC_READ' \
		'h = CreateFileMapping $f PAGE_READONLY 0 0 "theirs"' 'v = MapViewOfFile $h FILE_MAP_READ 0 0 0' > "$1/ctl"`, "sh", dir))
	if out, err := user.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if names := namesIn(t, m.path(".proc/sections")); !slices.Equal(names, []string{"box"}) {
		t.Errorf("there are %q", names)
	}
	must(t, os.Remove(dir))
	wantVerb(t, m.dir, "^ok\n$", "check")
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
	for _, file := range []string{"sections", "views", "cow", "multi-process", "rules-sections", "rules-views", "rules-image", "rules-sharing", "rules-programs", "rules-large-pages"} {
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
