package integration

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// TestMmapSharedUnderTrim has two processes store a pattern all over a mapping four times the memory, into the same
// pages, while every page is taken from them over and over.
func TestMmapSharedUnderTrim(t *testing.T) {
	program := compileC(t, "testdata/mmap.c")
	m := mountMemfs(t, options{memory: "64M", pageFile: "1G"})
	stopWatch := m.watchHost(64 << 20)
	stopTrim := m.trimLoop(0)
	run(t, "", program, "shared", m.path("shared"), strconv.Itoa(short(256, 64)))
	if n := stopTrim(); n < 2 {
		t.Errorf("trimmed %d times during the stores: too rarely to mean anything", n)
	} else {
		t.Logf("trimmed %d times during the stores", n)
	}
	stopWatch()
	if v := m.vmstat(); v.get(t, "invalidations") == 0 || v.get(t, "pages_output") == 0 {
		t.Errorf("nothing was unmapped or paged out: %v", v)
	}
}

// TestMmapCoherent has two processes show each other stores and writes through the mapping and through read(2).
func TestMmapCoherent(t *testing.T) {
	program := compileC(t, "testdata/mmap.c")
	m := mountMemfs(t, options{})
	run(t, "", program, "coherent", m.path("quiet"), "20000")
	trims := 0
	for round := 0; trims < 2 && round < 20; round++ { // a machine may have better to do than to trim while the program runs
		stop := m.trimLoop(0)
		run(t, "", program, "coherent", m.path("trimmed"), strconv.Itoa(short(5000, 1000)))
		trims += stop()
	}
	if trims < 2 {
		t.Errorf("trimmed only %d times", trims)
	}
}

// TestMmapPrivate shows that a private mapping keeps its own stores and shows the file's bytes everywhere else, also
// after its pages were taken away.
func TestMmapPrivate(t *testing.T) {
	program := compileC(t, "testdata/mmap.c")
	m := mountMemfs(t, options{})
	cmd := exec.Command(program, "private", m.path("file"))
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	must(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for _, step := range []string{"stored", "written"} {
		if !lines.Scan() || lines.Text() != step {
			in.Close()
			t.Fatalf("the program does not say %q: %v\n%s", step, cmd.Wait(), stderr.String())
		}
		m.pageOut()
		if _, err := io.WriteString(in, "go on\n"); err != nil {
			t.Error(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, stderr.String())
	}
}

// TestMmapPython maps a file from Python, whose mmap module looks at the size and flushes with msync.
func TestMmapPython(t *testing.T) {
	m := mountMemfs(t, options{})
	must(t, os.WriteFile(m.path("file"), make([]byte, 1<<20), 0o644))
	run(t, m.dir, "python3", "-c", `
import mmap, os
with open("file", "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    assert len(m) == 1 << 20, len(m)
    for i in range(0, len(m), 4099):
        m[i] = i % 251
    m.flush()
    with open(".proc/ctl", "w") as c:
        c.write("trim\n")
    f.seek(0)
    data = f.read()
    for i in range(len(data)):
        want = i % 251 if i % 4099 == 0 else 0
        assert data[i] == want == m[i], (i, data[i], m[i], want)
    m.resize(2 << 20)
    m[-1] = 7
assert os.stat("file").st_size == 2 << 20
with open("file", "rb") as f:
    f.seek(-1, 2)
    assert f.read() == b"\x07"
`)
}
