package integration

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestFillPastMemory is the main promise: a mount with 64 MiB of memory takes a source tree of over a hundred megabytes
// and a file of 512 MiB, gives every byte back, twice, and never costs the host more than it said.
func TestFillPastMemory(t *testing.T) {
	m := mountMemfs(t, options{memory: "64M", pageFile: "2G"})
	source, size := goSource(t, short("", "net")), short(int64(512<<20), 128<<20)
	sums := filepath.Join(m.base, "sums")
	must(t, os.WriteFile(sums, []byte(run(t, source, "sh", "-c", "find . -type f -print0 | xargs -0 sha256sum")), 0o644))

	stop := m.watchHost(64 << 20)
	var copies sync.WaitGroup // the tree and the big file go in at the same time
	copies.Go(func() {
		if err := writeContent(m.path("random"), 1, size); err != nil {
			t.Error(err)
		}
	})
	run(t, "", "cp", "-a", source, m.path("src"))
	copies.Wait()

	verify := func(when string) {
		t.Helper()
		if out := run(t, m.path("src"), "sha256sum", "--quiet", "-c", sums); out != "" {
			t.Errorf("%s: %s", when, tail(out))
		}
		wantContent(t, m.path("random"), 1, size)
		t.Logf("%s: every byte is right", when)
	}
	verify("after the copy")
	m.ctl("trim")
	verify("after trim")
	if a, b := listing(t, source), listing(t, m.path("src")); a != b {
		t.Errorf("names, modes, times or sizes differ after cp -a: %s", firstLines(a, b))
	}

	v := m.vmstat()
	for _, name := range []string{"pages_output", "pages_input"} {
		if n := v.get(t, name); n == 0 {
			t.Errorf("vmstat: %s is 0: nothing was paged", name)
		} else {
			t.Logf("vmstat: %s %d", name, n)
		}
	}
	m.check()
	stop()
}

// listing is what a tree's entries look like: kind, mode, size, modification time, link target and name.
func listing(t testing.TB, dir string) string {
	t.Helper()
	return run(t, dir, "sh", "-c", `find . ! -type d -printf '%y %m %U %G %s %T@ %l %P\n' -o -printf '%y %m %U %G %T@ %P\n' | LC_ALL=C sort`)
}

// firstLines shows the first lines in which two texts differ.
func firstLines(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(x), len(y)) {
		if x[i] != y[i] {
			return x[i] + " | " + y[i]
		}
	}
	return "one is longer"
}
