package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
)

// sizes of both file systems that the POSIX cases run on: equal, so that the same case fills both.
const (
	posixMemory   = "32M"
	posixPageFile = "96M"
	posixTmpfs    = "size=128M,nr_inodes=3000"
	posixInodes   = 3000
)

// TestPosix runs every case on a tmpfs, which must be right, and then on memfs, served by one thread and by all.
// The cases are go-fuse's posixtest and those of posix_cases_test.go.
func TestPosix(t *testing.T) {
	cases := maps.Clone(posixtest.All)
	// It wants a process's own lock to be in its way, which POSIX says it is not: it fails on every local file system.
	// LocksBetweenProcesses stands for it.
	delete(cases, "FcntlFlockLocksFile")
	for name, f := range posixCases {
		if cases[name] != nil {
			t.Fatalf("two cases named %s", name)
		}
		cases[name] = f
	}
	all := func(t *testing.T, dir string, after func()) {
		for _, name := range slices.Sorted(maps.Keys(cases)) {
			t.Run(name, func(t *testing.T) {
				own := filepath.Join(dir, name)
				must(t, os.Mkdir(own, 0o777))
				cases[name](t, own)
				must(t, os.RemoveAll(own))
				after()
			})
		}
	}
	t.Run("tmpfs", func(t *testing.T) { all(t, mountTmpfs(t, posixTmpfs), func() {}) })
	for _, env := range [][]string{nil, {"GOMAXPROCS=1"}} {
		t.Run(fmt.Sprint("memfs", env), func(t *testing.T) {
			m := mountMemfs(t, options{memory: posixMemory, pageFile: posixPageFile, env: env,
				flags: []string{fmt.Sprint("--nr-inodes=", posixInodes)}})
			all(t, m.dir, m.check)
		})
	}
	// Once more with every page taken away all the time.
	t.Run("memfs[trim]", func(t *testing.T) {
		m := mountMemfs(t, options{memory: "16M", pageFile: "112M",
			flags: []string{fmt.Sprint("--nr-inodes=", posixInodes)}})
		stop := m.trimLoop(20 * time.Millisecond)
		all(t, m.dir, func() {})
		if stop() == 0 {
			t.Error("nothing was trimmed")
		}
	})
}
