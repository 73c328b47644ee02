package integration

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// protect sets the protection of a file by its control file.
func (m *mount) protect(name, protection string) error {
	control := m.path(".proc/files", name, "protection")
	if info, err := os.Stat(m.path(name)); err == nil && info.IsDir() {
		control = m.path(".proc/files", name, ":protection")
	}
	f, err := os.OpenFile(control, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(protection + "\n")
	return err
}

// open opens a file and closes it again.
func (m *mount) open(name string, flags int) error {
	f, err := os.OpenFile(m.path(name), flags, 0o644)
	if err == nil {
		f.Close()
	}
	return err
}

// TestProtections tries on a file under each protection what it allows, root being the caller.
func TestProtections(t *testing.T) {
	m := mountMemfs(t, options{})
	program := mustRead(t, "/usr/bin/true")
	must(t, os.WriteFile(m.path("f"), program, 0o755))
	if got := string(mustRead(t, m.path(".proc/files/f/protection"))); got != "PAGE_EXECUTE_READWRITE\n" {
		t.Errorf("a file that nobody protected has %q", got)
	}
	for _, c := range []struct {
		protection           string
		read, write, execute bool
	}{
		{"PAGE_NOACCESS", false, false, false},
		{"PAGE_READONLY", true, false, false},
		{"PAGE_READWRITE", true, true, false},
		{"PAGE_WRITECOPY", true, false, false},
		{"PAGE_EXECUTE", true, false, true},
		{"PAGE_EXECUTE_READ", true, false, true},
		{"PAGE_EXECUTE_WRITECOPY", true, false, true},
		{"0x40", true, true, true}, // PAGE_EXECUTE_READWRITE
	} {
		must(t, m.protect("f", c.protection))
		want := func(what string, err error, allowed bool) {
			t.Helper()
			if allowed && err != nil {
				t.Errorf("%s: %s: %v", c.protection, what, err)
			} else if !allowed {
				wantErrno(t, c.protection+": "+what, err, unix.EACCES)
			}
		}
		want("open for reading", m.open("f", os.O_RDONLY), c.read)
		want("open for writing", m.open("f", os.O_WRONLY), c.write)
		want("open for both", m.open("f", os.O_RDWR), c.write)
		want("open for appending", m.open("f", os.O_WRONLY|os.O_APPEND|os.O_CREATE), c.write)
		want("truncate", os.Truncate(m.path("f"), int64(len(program))), c.write)
		if !c.write {
			want("open and truncate", m.open("f", os.O_RDONLY|os.O_TRUNC), false)
			want("open for writing and truncate", m.open("f", os.O_WRONLY|os.O_TRUNC), false)
			want("discard", echo(m.path(".proc/files/f/ctl"), "discard"), false)
		}
		want("execute", exec.Command(m.path("f")).Run(), c.execute)
		info, err := os.Stat(m.path("f"))
		must(t, err)
		if x := info.Mode().Perm()&0o111 != 0; x != c.execute {
			t.Errorf("%s: the mode is %v", c.protection, info.Mode())
		}
	}
	if got := string(mustRead(t, m.path(".proc/files/f/protection"))); got != "PAGE_EXECUTE_READWRITE\n" {
		t.Errorf("0x40 reads %q", got)
	}
	for _, bad := range []string{"", "PAGE_GUARD", "PAGE_READONLY|PAGE_GUARD", "PAGE_READONLY|PAGE_READWRITE", "READONLY", "0", "0x3", strings.Repeat("x", 60000)} {
		wantErrno(t, "protection "+bad, m.protect("f", bad), unix.EINVAL)
	}
	if got := mustRead(t, m.path("f")); !bytes.Equal(got, program) {
		t.Error("the contents have changed")
	}
}

// TestProtectionSetuid: a setuid program under a protection without EXECUTE is executed by nobody, through no link.
func TestProtectionSetuid(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("id"), mustRead(t, "/usr/bin/id"), 0o755))
	must(t, os.Chmod(m.path("id"), 0o755|os.ModeSetuid))
	must(t, os.Link(m.path("id"), m.path("other")))
	out, err := asNobody(exec.Command(m.path("id"), "-u")).CombinedOutput()
	if err != nil || string(out) != "0\n" {
		t.Fatalf("before: %v, %q", err, out)
	}
	must(t, m.protect("other", "PAGE_READONLY"))
	for _, name := range []string{"id", "other"} {
		wantErrno(t, "executing "+name+" as root", exec.Command(m.path(name)).Run(), unix.EACCES)
		wantErrno(t, "executing "+name, asNobody(exec.Command(m.path(name))).Run(), unix.EACCES)
	}
	must(t, os.Chmod(m.path("id"), 0o777))
	wantErrno(t, "executing after chmod", exec.Command(m.path("id")).Run(), unix.EACCES)
	if out, err := asNobody(exec.Command("sh", "-c", "echo PAGE_READWRITE > "+m.path(".proc/files/id/protection"))).CombinedOutput(); err == nil {
		t.Errorf("another user has set the protection: %s", out)
	}
	must(t, m.protect("id", "PAGE_EXECUTE_READ"))
	must(t, exec.Command(m.path("other")).Run())
}

// TestProtectionOpenHandles: what was written before a protection is kept, what comes after is refused.
func TestProtectionOpenHandles(t *testing.T) {
	m := mountMemfs(t, options{})
	const before, after = "written before", "written after!"
	f, err := os.OpenFile(m.path("f"), os.O_RDWR|os.O_CREATE, 0o644)
	must(t, err)
	defer f.Close()
	_, err = f.WriteString(before)
	must(t, err)
	_, err = f.WriteAt([]byte(before), 1<<20)
	must(t, err)
	must(t, m.protect("f", "PAGE_READONLY"))

	if _, err = f.WriteAt([]byte(after), 0); err == nil {
		err = f.Sync()
	}
	if err == nil {
		t.Error("a write through an open handle has been accepted")
	}
	wantErrno(t, "ftruncate", f.Truncate(0), unix.EACCES)
	wantErrno(t, "fallocate", unix.Fallocate(int(f.Fd()), 0, 0, 1<<20), unix.EACCES)
	wantErrno(t, "punch", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096), unix.EACCES)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) { // the trimmer takes the bytes away
		if got := mustRead(t, m.path("f")); len(got) >= len(before) && string(got[:len(before)]) == before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the refused bytes are still to be read")
		}
	}
	if got := mustRead(t, m.path("f")); len(got) != 1<<20+len(before) || string(got[1<<20:]) != before {
		t.Errorf("%d bytes are left, the last %q", len(got), got[max(0, len(got)-len(before)):])
	}

	must(t, m.protect("f", "PAGE_READWRITE"))
	data, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(data)
	copy(data, "stored before!")
	must(t, m.protect("f", "PAGE_WRITECOPY"))
	if got := mustRead(t, m.path("f")); string(got[:14]) != "stored before!" {
		t.Errorf("a store before the protection: %q is left", got[:14])
	}
	copy(data, "stored after!!")
	if err := unix.Msync(data, unix.MS_SYNC); err == nil {
		t.Error("a store through a mapping has been accepted")
	}
	must(t, echo(m.path(".proc/ctl"), "trim"))
	if string(data[:14]) != "stored before!" {
		t.Errorf("the mapping shows %q", data[:14])
	}
	private, err := os.Open(m.path("f"))
	must(t, err)
	defer private.Close()
	_, err = unix.Mmap(int(private.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	wantErrno(t, "a shared writable mapping", err, unix.EACCES)
	own, err := unix.Mmap(int(private.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(t, err)
	copy(own, "mine")
	must(t, unix.Munmap(own))

	must(t, m.protect("f", "PAGE_NOACCESS"))
	wantErrno(t, "open", m.open("f", os.O_RDONLY), unix.EACCES)
	if _, err := private.ReadAt(make([]byte, 14), 0); err != nil {
		t.Errorf("reading through what is open: %v", err)
	}
	m.check()
}

// TestProtectionInherited: directories hand their protection on, cp -a carries it, and removing the attribute lifts it.
func TestProtectionInherited(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.MkdirAll(m.path("dir/sub"), 0o755))
	must(t, os.WriteFile(m.path("dir/old"), []byte("old"), 0o644))
	must(t, m.protect("dir", "PAGE_READONLY"))
	must(t, os.Mkdir(m.path("dir/new"), 0o755))
	must(t, os.WriteFile(m.path("dir/new/file"), []byte("new"), 0o644))
	must(t, m.open("dir/old", os.O_RDWR))
	wantErrno(t, "a file made since, once more", m.open("dir/new/file", os.O_RDWR), unix.EACCES)
	if got := string(mustRead(t, m.path("dir/new/file"))); got != "new" {
		t.Errorf("who made it could write %q", got)
	}
	must(t, m.protect("dir/old", "inherit"))
	wantErrno(t, "a file that inherits", m.open("dir/old", os.O_RDWR), unix.EACCES)

	if out, err := exec.Command("cp", "-a", m.path("dir/new/file"), m.path("copy")).CombinedOutput(); err != nil {
		t.Fatalf("cp -a: %v\n%s", err, out)
	}
	if got := string(mustRead(t, m.path("copy"))); got != "new" {
		t.Errorf("the copy has %q", got)
	}
	wantErrno(t, "the copy", m.open("copy", os.O_RDWR), unix.EACCES)
	must(t, unix.Removexattr(m.path("copy"), "user.memfs.protection"))
	must(t, m.open("copy", os.O_RDWR))
	wantErrno(t, "a bad attribute", unix.Setxattr(m.path("copy"), "user.memfs.protection", []byte("PAGE_NONE"), 0), unix.EINVAL)
	must(t, unix.Setxattr(m.path("copy"), "user.memfs.protection", []byte("PAGE_READONLY"), 0))
	wantErrno(t, "by its attribute", m.open("copy", os.O_WRONLY), unix.EACCES)

	wantVerb(t, m.path("dir"), "^PAGE_READONLY\n$", "protect", "old")
	wantVerb(t, m.path("dir"), "^$", "protect", "--below", ".", "PAGE_READWRITE")
	must(t, m.open("dir/new/file", os.O_RDWR))
	wantVerb(t, "/", "^PAGE_READWRITE\n$", "protect", m.path("dir/new"))
	for args, words := range map[string]string{"old PAGE_NONE": "PAGE_NONE", "": "no path", "--below old PAGE_READONLY": "for directories", "a b c": "3 arguments"} {
		out, diagnostics, status := verb(t, m.path("dir"), append([]string{"protect"}, strings.Fields(args)...)...)
		if status == 0 || out != "" || !strings.Contains(diagnostics, words) || strings.Count(diagnostics, "\n") != 1 {
			t.Errorf("protect %s: exit status %d, %q", args, status, diagnostics)
		}
	}
}

// TestProtectionSections: simulated processes open protected files as far as the protection goes.
func TestProtectionSections(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("f"), []byte("contents"), 0o644))
	must(t, os.Mkdir(m.path(".proc/p"), 0o755))
	for protection, allowed := range map[string]string{"PAGE_NOACCESS": "", "PAGE_READONLY": "R", "PAGE_READWRITE": "RW",
		"PAGE_EXECUTE_READ": "RX", "PAGE_EXECUTE_READWRITE": "RWX"} {
		must(t, m.protect("f", protection))
		for letter, access := range map[string]string{"R": "GENERIC_READ", "W": "GENERIC_WRITE", "X": "GENERIC_EXECUTE"} {
			replies, _ := m.call(t, "p", `h = CreateFile "/f" `+access)
			want := "ERR 5 ERROR_ACCESS_DENIED"
			if strings.Contains(allowed, letter) {
				want = "OK "
				_, err := m.call(t, "p", "CloseHandle $h")
				must(t, err)
			}
			if !strings.HasPrefix(replies[0], want) {
				t.Errorf("%s of a %s file: %q, want %s", access, protection, replies, want)
			}
		}
	}
}

// TestAlwaysOnNoexec: under AlwaysOn nothing on the mount is executed, by no way.
func TestAlwaysOnNoexec(t *testing.T) {
	m := mountMemfs(t, options{flags: []string{"--nx", "AlwaysOn"}})
	must(t, os.WriteFile(m.path("true"), mustRead(t, "/usr/bin/true"), 0o755))
	wantErrno(t, "execute", exec.Command(m.path("true")).Run(), unix.EACCES)
	f, err := os.Open(m.path("true"))
	must(t, err)
	defer f.Close()
	_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	wantErrno(t, "an executable mapping", err, unix.EPERM)
}

// TestAlwaysOnLater: a mount that is told AlwaysOn while it is live has no program or script started from then on, as anybody, and
// forgets no mode for it; another policy ends that.
func TestAlwaysOnLater(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("true"), mustRead(t, "/usr/bin/true"), 0o755))
	must(t, os.WriteFile(m.path("script"), []byte("#!/bin/sh\n"), 0o755))
	for _, policy := range []string{"OptIn", "AlwaysOn", "OptOut", "AlwaysOn", "AlwaysOff"} {
		run(t, "", memfsBinary, "nx", m.dir, policy)
		for _, name := range []string{"true", "script"} {
			for who, cmd := range map[string]*exec.Cmd{"root": exec.Command(m.path(name)), "nobody": asNobody(exec.Command(m.path(name)))} {
				switch err := cmd.Run(); {
				case policy == "AlwaysOn":
					wantErrno(t, policy+": execute "+name+" as "+who, err, unix.EACCES)
				case err != nil:
					t.Errorf("%s: execute %s as %s: %v", policy, name, who, err)
				}
			}
			if info, err := os.Stat(m.path(name)); err != nil || info.Mode().Perm() != 0o755 {
				t.Errorf("%s: mode of %s is %v, %v", policy, name, info.Mode(), err)
			}
		}
		if string(mustRead(t, m.path("script"))) != "#!/bin/sh\n" {
			t.Errorf("%s: reading is not executing", policy)
		}
	}
}
