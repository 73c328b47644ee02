package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const sampleMounts = `22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/a rw,relatime shared:7 master:3 - fuse.memfs memfs rw,user_id=1000,group_id=0,default_permissions,allow_other
31 22 0:41 / /mnt/with\040blank\011tab\134slash rw - tmpfs none rw,size=4k
32 30 0:42 / /mnt/a rw,relatime - fuse.memfs memfs rw,user_id=0,group_id=0
nonsense
33 22 0:43 / /mnt/b rw - fuse.sshfs host:/ rw,user_id=7
`

func TestMountTable(t *testing.T) {
	table := parseMountTable([]byte(sampleMounts))
	if len(table) != 5 {
		t.Fatalf("%d mounts: %+v", len(table), table)
	}
	m, ok := topMount(table, "/mnt/a")
	if !ok || m.device != "0:42" || m.fsType != fsType || m.source != "memfs" || m.owner() != "0" || m.allowsOthers() || !m.isFUSE() {
		t.Errorf("the upper mount of /mnt/a: %+v", m)
	}
	if m := table[1]; m.owner() != "1000" || !m.allowsOthers() {
		t.Errorf("the lower mount of /mnt/a: %+v", m)
	}
	if m, ok := topMount(table, "/mnt/with blank\ttab\\slash"); !ok || m.isFUSE() || m.owner() != "" {
		t.Errorf("the mount with escapes: %+v", m)
	}
	if _, ok := topMount(table, "/mnt"); ok {
		t.Error("/mnt is no mount")
	}
	if m, ok := mountAbove(table, "/mnt/b/c/d"); !ok || m.device != "0:43" {
		t.Errorf("the mount above /mnt/b/c/d: %+v", m)
	}
	if m, ok := mountAbove(table, "/x"); !ok || m.mountpoint != "/" {
		t.Errorf("the mount above /x: %+v", m)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`a`: "a", `a\040b`: "a b", `\134`: `\`, `\303\244`: "ä", `a\04`: `a\04`, `\9999`: `\9999`} {
		if got := unescape(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

func TestCheckMountpoint(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Mkdir(in("empty"), 0o755))
	must(os.MkdirAll(in("full/sub"), 0o755))
	must(os.WriteFile(in("file"), nil, 0o644))
	must(os.Symlink("empty", in("link")))
	must(os.Symlink(in("link"), in("link2")))
	must(os.Symlink("gone", in("dangling")))
	must(os.Symlink("file", in("tofile")))
	must(os.Symlink("loop", in("loop")))
	warn := func(format string, args ...any) { t.Errorf(format, args...) }

	for _, name := range []string{"empty", "empty/", "./empty", "full/../empty", "link", "link2", "full/sub"} {
		want := in("empty")
		if name == "full/sub" {
			want = in("full/sub")
		}
		if got, err := checkMountpoint(dir+"/"+name, false, warn); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", name, got, err, want)
		}
	}
	t.Chdir(dir)
	if got, err := checkMountpoint("empty", false, warn); err != nil || got != in("empty") {
		t.Errorf("relative: %s, %v", got, err)
	}
	for name, want := range map[string]string{
		"none": "no such directory", "none/x": "no such file", "file": "not a directory", "tofile": "not a directory", "full": "not empty",
		"dangling": "does not exist", "file/x": "not a directory", "loop": "", "/": "not empty",
	} {
		if _, err := checkMountpoint(name, false, warn); err == nil || !strings.HasPrefix(err.Error(), name+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", name, err, want)
		}
	}
	if got, err := checkMountpoint("full", true, warn); err != nil || got != in("full") {
		t.Errorf("--nonempty: %s, %v", got, err)
	}
	if _, err := checkMountpoint("file", true, warn); err == nil {
		t.Error("--nonempty: a file was taken")
	}
}

func TestFindMount(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/proc", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/proc": "not a memfs mount, but proc", dir: "nothing is mounted", filepath.Join(dir, "none"): "no such file",
		filepath.Join(dir, "link"): "not a memfs mount, but proc", "/proc/": "but proc",
	} {
		if _, err := findMount(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", path, err, want)
		}
	}
}

func TestSystemCall(t *testing.T) {
	if err := systemCall(10*time.Second, "statfs", t.TempDir()); err != nil {
		t.Errorf("statfs: %v", err)
	}
	if err := systemCall(10*time.Second, "statfs", "/no/such/place"); err != unix.ENOENT {
		t.Errorf("statfs of nothing: %v", err)
	}
	if err := systemCall(10*time.Second, "umount", "0", t.TempDir()); err != unix.EINVAL && err != unix.EPERM {
		t.Errorf("umount of no mount: %v", err)
	}
	if err := systemCall(10*time.Second, "reboot"); err == nil {
		t.Error("an unknown call was made")
	} else if errno := unix.Errno(0); errors.As(err, &errno) {
		t.Errorf("an unknown call: %v", err)
	}
}

func TestUsers(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if text := users(dir); text != "" {
		t.Errorf("nobody is in %s, but: %s", dir, text)
	}
	f, err := os.Create(filepath.Join(dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text := users(dir); !strings.Contains(text, "has open files there") {
		t.Errorf("an open file: %q", text)
	}
	if within("/mnt/ab", "/mnt/a") || !within("/mnt/a/b", "/mnt/a") || !within("/mnt/a", "/mnt/a") {
		t.Error("within")
	}
}
