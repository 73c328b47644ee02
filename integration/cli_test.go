package integration

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// oneLineRefusal fails the test unless a command refused with that exit status and one line that has all of words in it.
func oneLineRefusal(t testing.TB, what, out string, err error, status int, words ...string) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Errorf("%s: %v, want exit status %d\n%s", what, err, status, out)
		return
	}
	if exit.ExitCode() != status {
		t.Errorf("%s: exit status %d, want %d", what, exit.ExitCode(), status)
	}
	line := strings.TrimSuffix(out, "\n")
	if line == "" || strings.Contains(line, "\n") {
		t.Errorf("%s: want one line, got %q", what, out)
	}
	for _, word := range words {
		if !strings.Contains(strings.ToLower(line), strings.ToLower(word)) {
			t.Errorf("%s: the line does not say %q: %s", what, word, line)
		}
	}
}

// TestRefusals gives the command every wrong argument there is: one line that says what was wrong, exit status 1, or 2
// for wrong usage, and nothing mounted.
func TestRefusals(t *testing.T) {
	needMount(t)
	base := scratch(t)
	at := func(name string) string { return filepath.Join(base, name) }
	empty, full, file := at("empty"), at("full"), at("file")
	must(t, os.Mkdir(empty, 0o755))
	must(t, os.Mkdir(full, 0o755))
	must(t, os.WriteFile(filepath.Join(full, "x"), nil, 0o644))
	must(t, os.WriteFile(file, nil, 0o644))
	must(t, os.Symlink("nowhere", at("dangling")))
	mounted := mountMemfs(t, options{memory: "32M"})
	page := "--pagefile=" + at("page") + ",size=64M"

	cases := []struct {
		args   []string
		status int
		words  []string
	}{
		{[]string{"mount", at("absent")}, 1, []string{"absent"}},
		{[]string{"mount", file}, 1, []string{"file", "directory"}},
		{[]string{"mount", full}, 1, []string{"full", "empty"}},
		{[]string{"mount", at("dangling")}, 1, []string{"dangling"}},
		{[]string{"mount", page, mounted.dir}, 1, []string{"already"}},
		{[]string{"mount", "--memory=1M", empty}, 1, []string{"memory"}},
		{[]string{"mount", "--memory=4096P", empty}, -1, []string{"memory"}},
		{[]string{"mount", "--memory=99999999T", empty}, -1, []string{"memory"}},
		{[]string{"mount", "--memory=lots", empty}, 2, []string{"memory", "lots"}},
		{[]string{"mount", "--memory=-64M", empty}, 2, []string{"memory"}},
		{[]string{"mount", "--memory=", empty}, 2, []string{"memory"}},
		{[]string{"mount", "--memory=64M", "--pagefile=" + at("absent/page") + ",size=64M", empty}, 1, []string{"absent"}},
		{[]string{"mount", "--memory=64M", "--pagefile=" + file + ",size=64M", empty}, 1, []string{"file", "already"}},
		{[]string{"mount", "--memory=64M", page, "--pagefile=none", empty}, 2, []string{"pagefile"}},
		{[]string{"mount", "--memory=64M", "--pagefile=" + at("page") + ",size=900T", empty}, 1, []string{"free"}},
		{[]string{"mount", "--memory=32M", "--pagefile=" + at("page") + ",size=20G", empty}, 1, []string{"records", "at most"}},
		{[]string{"mount", "--memory=64M", "--pagefile=" + at("page") + ",size=64M-32M", empty}, 2, []string{"min"}},
		{[]string{"mount", "--memory=64M", "--pagefile=/proc/memfs-page,size=64M", empty}, 1, []string{"/proc/memfs-page"}},
		{[]string{"mount", "--memory=64M", "--pagefile=" + at("page") + ",size=much", empty}, 2, []string{"size", "much"}},
		{[]string{"mount", "--memory=64M", "--pagefile=" + at("page") + ",colour=red", empty}, 2, []string{"colour"}},
		{[]string{"mount", "--memory=64M", page, "--inject=explode", empty}, 2, []string{"explode"}},
		{[]string{"mount", "--memory=64M", page, "--no-such-flag", empty}, 2, []string{"no-such-flag"}},
		{[]string{"mount"}, 2, nil},
		{[]string{"mount", empty, full}, 2, nil},
		{[]string{"frobnicate", empty}, 2, []string{"frobnicate"}},
		{[]string{"umount", empty}, 1, []string{"empty"}},
		{[]string{"umount", at("absent")}, 1, []string{"absent"}},
		{[]string{"umount", "/"}, 1, []string{"/"}},
		{[]string{"umount"}, 2, nil},
		{[]string{"info", empty}, 1, []string{"empty"}},
		{[]string{"info", "/proc"}, 1, []string{"/proc"}},
		{[]string{"info"}, 1, []string{"current directory"}},
		{[]string{"info", empty, full}, 2, []string{"one path"}},
		{[]string{"check", empty}, 1, []string{"empty"}},
		{[]string{"check", at("absent")}, 1, []string{"absent"}},
		{[]string{"check"}, 1, []string{"current directory"}},
		{[]string{"ps", "/proc"}, 1, []string{"not in a memfs mount"}},
		{[]string{"ps", "-o", "xml", mounted.dir}, 2, []string{"xml"}},
		{[]string{"maps"}, 2, []string{"no process"}},
		{[]string{"maps", "-m", mounted.dir, "nobody"}, 1, []string{"no such process"}},
		{[]string{"maps", "nobody"}, 1, []string{"--mount"}},
		{[]string{"maps", mounted.dir}, 1, []string{"not the folder of a process"}},
		{[]string{"call", "p"}, 2, []string{"a process and a call"}},
		{[]string{"run"}, 2, []string{"no script"}},
		{[]string{"run", "-m", mounted.dir, at("absent")}, 1, []string{"absent"}},
		{[]string{"run", "-m", mounted.dir, "--arch", "z80", file}, 2, []string{"z80"}},
		{[]string{"dep", "-m", mounted.dir, "nobody", "on"}, 1, []string{"no such process"}},
		{[]string{"nx", mounted.dir, "Sometimes"}, 2, []string{"Sometimes", "AlwaysOn"}},
		{[]string{"nx", "Sometimes"}, 2, []string{"Sometimes"}},
		{[]string{"pages"}, 2, []string{"one path"}},
		{[]string{"pages", mounted.dir}, 1, []string{"a directory"}},
		{[]string{"pages", mounted.path("absent")}, 1, []string{"absent", "no such file"}},
		{[]string{"files", "--sort", "colour", mounted.dir}, 2, []string{"colour"}},
		{[]string{"pin"}, 2, []string{"no path"}},
		{[]string{"pin", file}, 1, []string{"not in a memfs mount"}},
		{[]string{"trim", full}, 1, []string{"not in a memfs mount"}},
		{[]string{"trim", ""}, 2, []string{"empty path"}},
		{[]string{"top", "-d", "1ms", mounted.dir}, 2, []string{"1ms"}},
	}
	for _, c := range cases {
		t.Run(strings.ReplaceAll(strings.Join(c.args, " "), base+"/", ""), func(t *testing.T) {
			cmd := exec.Command(memfsBinary, c.args...)
			cmd.WaitDelay = 5 * time.Second
			out, err := cmd.CombinedOutput()
			if c.status < 0 { // 1 or 2 are both right
				c.status = 1
				if cmd.ProcessState.ExitCode() == 2 {
					c.status = 2
				}
			}
			oneLineRefusal(t, strings.Join(c.args, " "), string(out), err, c.status, c.words...)
			if isMounted(empty) {
				t.Error("it mounted all the same")
				run(t, "", "umount", empty)
			}
		})
	}
	if left, _ := filepath.Glob(at("page*")); len(left) > 0 {
		t.Errorf("a refused mount left %v", left)
	}
	mounted.check() // what was mounted before is not disturbed
}

// TestRefusedByTheMachine takes away what a mount needs: the device, the right to the directory, the right to the page
// file's directory.
func TestRefusedByTheMachine(t *testing.T) {
	needMount(t)
	base := scratch(t)
	dir := filepath.Join(base, "mnt")
	must(t, os.Mkdir(dir, 0o755)) // root's: nobody may not write it

	t.Run("no /dev/fuse", func(t *testing.T) {
		cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c",
			`mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && exec "$0" mount --memory 64M --pagefile none "$1"`, memfsBinary, dir)
		out, err := cmd.CombinedOutput()
		oneLineRefusal(t, "memfs mount without /dev/fuse", string(out), err, 1, "/dev/fuse")
	})

	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	t.Run("a directory of somebody else", func(t *testing.T) {
		cmd := exec.Command(memfsBinary, "mount", "--memory=64M", "--pagefile=none", dir)
		cmd.SysProcAttr = nobody
		out, err := cmd.CombinedOutput()
		oneLineRefusal(t, "memfs mount by nobody", string(out), err, 1, "mnt")
	})
	t.Run("a page file where one may not write", func(t *testing.T) {
		mine := filepath.Join(base, "mine")
		must(t, os.Mkdir(mine, 0o700))
		must(t, os.Chown(mine, 65534, 65534))
		cmd := exec.Command(memfsBinary, "mount", "--memory=64M", "--pagefile="+filepath.Join(base, "page")+",size=64M", mine)
		cmd.SysProcAttr = nobody
		out, err := cmd.CombinedOutput()
		oneLineRefusal(t, "memfs mount with a page file in root's directory", string(out), err, 1, "page", "permission")
	})
}

// TestClients runs the commands that look at a mount.
func TestClients(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "128M"})
	must(t, os.WriteFile(m.path("file"), block(1, 8<<20), 0o644))
	info := run(t, "", memfsBinary, "info", m.dir)
	if n := strings.Count(info, "\n"); n < 3 || n > 40 {
		t.Errorf("memfs info says %d lines, want a few:\n%s", n, info)
	}
	if !strings.Contains(info, "64") || !strings.Contains(info, "128") {
		t.Errorf("memfs info names neither the memory nor the page file:\n%s", info)
	}
	if got := strings.TrimSpace(run(t, "", memfsBinary, "check", m.dir)); got != "ok" {
		t.Errorf("memfs check says %q", got)
	}
	for _, args := range [][]string{{"--help"}, {"mount", "--help"}, {"help"}} {
		if out := run(t, "", memfsBinary, args...); !strings.Contains(out, "memfs") {
			t.Errorf("memfs %v does not show how to use it:\n%s", args, out)
		}
	}
	if out := run(t, "", memfsBinary, "mount", "--help"); !strings.Contains(out, "--memory") || !strings.Contains(out, "--pagefile") {
		t.Errorf("memfs mount --help does not name its flags:\n%s", out)
	}
}
