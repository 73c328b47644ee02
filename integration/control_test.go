package integration

import (
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// controlFiles are the control files that this version has; each has a JSON twin.
var controlFiles = []string{"version", "meminfo", "vmstat", "pagelists", "pagefiles", "pressure", "ps", "check"}

// perFile are the control files of a regular file.
var perFile = []string{"info", "pages", "map"}

// TestControlFiles reads every control file in the ways that programs read files under /proc.
func TestControlFiles(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.MkdirAll(m.path("dir/sub"), 0o755))
	must(t, os.WriteFile(m.path("dir/sub/file"), block(1, 300_000), 0o644))
	var all []string
	for _, name := range controlFiles {
		all = append(all, ".proc/"+name, ".proc/"+name+".json")
	}
	for _, name := range perFile {
		all = append(all, ".proc/files/dir/sub/file/"+name, ".proc/files/dir/sub/file/"+name+".json")
	}
	for _, name := range all {
		t.Run(name, func(t *testing.T) {
			st := stat(t, m.path(name))
			if st.Size != 0 {
				t.Errorf("size is %d, want 0 as under /proc", st.Size)
			}
			if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o222 != 0 || st.Mode&0o400 == 0 {
				t.Errorf("mode is %o, want a file that can be read only", st.Mode)
			}
			whole := mustRead(t, m.path(name))
			if len(whole) == 0 || whole[len(whole)-1] != '\n' {
				t.Errorf("%d bytes without a newline at the end", len(whole))
			}
			if strings.HasSuffix(name, ".json") {
				var object map[string]any
				if err := json.Unmarshal(whole, &object); err != nil {
					t.Errorf("%v\n%s", err, tail(string(whole)))
				}
			}
			snapshot(t, m, name)
			if out := run(t, m.dir, "cat", name); out == "" {
				t.Error("cat shows nothing")
			}
			for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR} {
				if fd, err := unix.Open(m.path(name), flags, 0); err == nil {
					if _, err := unix.Write(fd, []byte("x\n")); err == nil {
						t.Error("it can be written")
					}
					unix.Close(fd)
				}
			}
			if err := os.Remove(m.path(name)); err == nil {
				t.Error("it can be removed")
			}
			if err := os.Rename(m.path(name), m.path(name+"2")); err == nil {
				t.Error("it can be renamed")
			}
			if err := os.WriteFile(m.path(filepath.Dir(name), "new"), nil, 0o644); err == nil {
				t.Error("a file can be made beside it")
			}
		})
	}
}

// snapshot fails the test unless a control file, once opened, stays as it was: the same bytes at every offset, in
// pieces of any size, whatever happens meanwhile.
func snapshot(t *testing.T, m *mount, name string) {
	t.Helper()
	f, err := os.Open(m.path(name))
	must(t, err)
	defer f.Close()
	var pieces []byte
	one := make([]byte, 7)
	for {
		n, err := f.Read(one)
		pieces = append(pieces, one[:n]...)
		if err == io.EOF {
			break
		}
		must(t, err)
		if len(pieces) == 70 {
			m.ctl("trim") // changes counters, lists and maps
		}
		if len(pieces) > 64<<10 {
			return // long enough
		}
	}
	again := make([]byte, len(pieces)+10)
	if n, err := f.ReadAt(again, 0); n != len(pieces) || err != io.EOF || string(again[:n]) != string(pieces) {
		t.Errorf("read again through the same descriptor it says something else (%d bytes, then %d, %v)", len(pieces), n, err)
	}
}

// TestControlCommands gives commands as a shell does.
func TestControlCommands(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("file"), block(1, 1<<20), 0o644))
	for _, command := range []string{"trim", "flush", "empty standby", "empty modified", "zero", "check", "help"} {
		run(t, m.dir, "sh", "-c", "echo '"+command+"' > .proc/ctl")
	}
	for _, command := range []string{"trim", "flush", "help"} {
		run(t, m.dir, "sh", "-c", "echo '"+command+"' > .proc/files/file/ctl")
	}
	for _, command := range []string{"frobnicate", "trim trim trim", "empty", "empty everything", "\x00", "trim\xff"} {
		out, err := exec.Command("sh", "-c", `echo "$0" > "$1"`, command, m.path(".proc/ctl")).CombinedOutput()
		if command == "\x00" {
			err = echo(m.path(".proc/ctl"), command)
		}
		if err == nil {
			t.Errorf("echo %q > ctl succeeds: %s", command, out)
		}
		wantErrno(t, "write of "+command, echo(m.path(".proc/ctl"), command), unix.EINVAL)
	}
	// A conversation on one descriptor: each command is answered with a line.
	out := run(t, m.dir, "bash", "-c", `
exec 3<> .proc/ctl
for c in trim "empty standby" nonsense flush; do
	echo "$c" >&3 || true
	read -r reply <&3
	echo "$reply"
done 2>/dev/null`)
	replies := strings.Split(strings.TrimSpace(out), "\n")
	if len(replies) != 4 || !strings.HasPrefix(replies[0], "OK") || !strings.HasPrefix(replies[1], "OK") ||
		!strings.HasPrefix(replies[2], "ERR") || !strings.HasPrefix(replies[3], "OK") {
		t.Errorf("four commands were answered with %q", replies)
	}
	wantFile(t, m.path("file"), block(1, 1<<20))
}

// TestControlTreeHidden shows that programs that walk a mount never get into .proc, though a path always does.
func TestControlTreeHidden(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("file"), []byte("x"), 0o644))
	wantEntries(t, m.dir, "file")
	if out := run(t, m.dir, "find", "."); out != ".\n./file\n" {
		t.Errorf("find lists %q", out)
	}
	entries, err := os.ReadDir(m.path(".proc"))
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	for _, name := range append(slices.Clone(controlFiles), "ctl", "files") {
		if !slices.Contains(names, name) {
			t.Errorf(".proc lists no %s: %v", name, names)
		}
	}
	for what, err := range map[string]error{
		"mkdir":        os.Mkdir(m.path(".proc"), 0o755),
		"create":       os.WriteFile(m.path(".proc"), nil, 0o644),
		"rmdir":        unix.Rmdir(m.path(".proc")),
		"rename over":  os.Rename(m.path("file"), m.path(".proc")),
		"rename away":  os.Rename(m.path(".proc"), m.path("gone")),
		"symlink":      os.Symlink("x", m.path(".proc")),
		"link out":     os.Link(m.path(".proc/version"), m.path("link")),
		"link in":      os.Link(m.path("file"), m.path(".proc/link")),
		"rename in":    os.Rename(m.path("file"), m.path(".proc/file")),
		"chmod":        errors.Join(os.Chmod(m.path(".proc/check"), 0o666)),
		"truncate":     os.Truncate(m.path(".proc/files"), 0),
		"mkdir inside": os.Mkdir(m.path(".proc/files/new"), 0o755),
	} {
		if err == nil {
			t.Errorf("%s of .proc succeeds", what)
		}
	}
	wantFile(t, m.path("file"), []byte("x"))
	// The tree below files follows the real one.
	must(t, os.MkdirAll(m.path("a/b"), 0o755))
	must(t, os.WriteFile(m.path("a/b/c"), []byte("x"), 0o644))
	if out := run(t, m.path(".proc/files"), "find", ".", "-path", "*/b/c/info"); out != "./a/b/c/info\n" {
		t.Errorf("find in .proc/files lists %q", out)
	}
	must(t, os.Rename(m.path("a/b"), m.path("z")))
	if _, err := os.ReadFile(m.path(".proc/files/z/c/info")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(m.path(".proc/files/a/b/c")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the old path below files: %v", err)
	}
	must(t, os.RemoveAll(m.path("z")))
	if _, err := os.Stat(m.path(".proc/files/z")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("the path of a removed file below files: %v", err)
	}
}

// TestControlVisible lists .proc, and under another name, when asked to.
func TestControlVisible(t *testing.T) {
	m := mountMemfs(t, options{flags: []string{"--proc=visible"}})
	wantEntries(t, m.dir, ".proc")
}

// TestControlNoise writes noise to the ctl files, from several sides, while others read.
func TestControlNoise(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("file"), block(1, 1<<20), 0o644))
	words := []string{"trim", "flush", "empty", "standby", "modified", "workingsets", "zero", "check", "help", "prefetch", "pin", "unpin",
		"noswap", "swap", "priority", "3", "memory", "48M", "64M", "size", "0",
		"=", "$x", "0x", "-1", "\n", "\r\n", "\x00", "#", "|", "'", "\"", strings.Repeat("a", 5000), "9999999999999999999999"}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var group sync.WaitGroup
	for w := range 4 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(w)))
			for range short(300, 100) {
				name := m.path(".proc/ctl")
				if r.IntN(2) == 0 {
					name = m.path(".proc/files/file/ctl")
				}
				var line strings.Builder
				for range r.IntN(6) {
					line.WriteString(words[r.IntN(len(words))])
					line.WriteString([]string{" ", "", "\t", "\n"}[r.IntN(4)])
				}
				if r.IntN(8) == 0 {
					b := make([]byte, r.IntN(9000))
					for i := range b {
						b[i] = byte(r.Uint32())
					}
					line.Write(b)
				}
				_ = echo(name, line.String()) // refused or not: nothing may break
			}
		})
	}
	group.Go(func() {
		for range 50 {
			for _, name := range controlFiles {
				if _, err := os.ReadFile(m.path(".proc", name)); err != nil {
					t.Error(err)
				}
			}
		}
	})
	group.Wait()
	m.check()
	wantFile(t, m.path("file"), block(1, 1<<20))
}

// TestFilesOfManyPages reads the maps of files with far more holes than pages.
func TestFilesOfManyPages(t *testing.T) {
	m := mountMemfs(t, options{})
	f, err := os.Create(m.path("sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("x"), 1<<50)
	must(t, err)
	must(t, f.Truncate(1<<62))
	must(t, f.Close())
	for _, name := range []string{"map", "pages", "info", "map.json"} {
		b := mustRead(t, m.path(".proc/files/sparse", name))
		if len(b) == 0 || len(b) > 1<<20 {
			t.Errorf("%s of a file with one page has %d bytes", name, len(b))
		}
	}
	if err := writeContent(m.path("big"), 1, 100<<20); err != nil {
		t.Fatal(err)
	}
	pages := mustRead(t, m.path(".proc/files/big/pages"))
	if n := strings.Count(string(pages), "\n"); n != 25600+1 {
		t.Errorf("pages of a file of 25600 pages has %d lines, want a header and a line each", n)
	}
	letters := 0
	for line := range strings.Lines(string(mustRead(t, m.path(".proc/files/big/map")))) {
		letters += len(strings.Fields(line)[1])
	}
	if letters != 25600 {
		t.Errorf("map of a file of 25600 pages has %d letters", letters)
	}
}

// TestControlSizes: a control file has no size, whatever was written to it.
func TestControlSizes(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("f"), []byte("text"), 0o644))
	must(t, os.Mkdir(m.path(".proc/p@x86"), 0o755))
	for name, line := range map[string]string{
		"ctl": "trim", "p@x86/ctl": "VirtualQuery 0", "p@x86/dep": "0", "policy/nx": "OptOut", "files/f/ctl": "prefetch",
		"files/f/priority": "3", "files/:ctl": "trim", "files/:pin": "0",
	} {
		name = m.path(".proc", name)
		for range 3 {
			must(t, echo(name, line))
			size := int64(-1)
			if !within(10*time.Second, func() bool { size = stat(t, name).Size; return size == 0 }) {
				t.Errorf("%s has %d bytes", name, size)
			}
		}
		if wc := run(t, "", "wc", "-c", name); name == m.path(".proc/policy/nx") && !strings.HasPrefix(wc, "7 ") {
			t.Errorf("wc -c says %s", wc)
		}
	}
}
