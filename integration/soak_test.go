//go:build soak

package integration

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestSoak lets fio write and verify in four jobs, trees come and go, and commands fall at random, for as long as
// MEMFS_SOAK says (10m). The host's memory is watched all the time.
func TestSoak(t *testing.T) {
	length := 10 * time.Minute
	if s := os.Getenv("MEMFS_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	m := mountMemfs(t, options{memory: "64M", pageFile: "2G", limit: length + 10*time.Minute})
	stopWatch := m.watchHost(64 << 20)
	pages := scratch(t)
	end := time.Now().Add(length)
	seed := rand.Uint64()
	t.Logf("seed %d, %v", seed, length)

	var failed atomic.Bool
	var programs sync.WaitGroup
	repeat := func(f func(round int) error) {
		programs.Go(func() {
			for round := 0; time.Now().Before(end) && !failed.Load(); round++ {
				if err := f(round); err != nil {
					failed.Store(true)
					t.Error(err)
				}
			}
		})
	}
	for job := range 4 {
		repeat(func(round int) error { return m.fioVerify(job, round, "160m") })
	}
	source := goSource(t, "go")
	repeat(func(int) error {
		_, err := tryRun(m.dir, "", "sh", "-c", fmt.Sprintf("cp -a %s tree && diff -r %s tree && rm -rf tree", source, source))
		return err
	})
	repeat(func(round int) error {
		r := rand.New(rand.NewPCG(seed, uint64(round)))
		commands := []string{"trim", "flush", "empty standby", "empty modified", "empty workingsets", "empty all", "zero",
			"memory 24M", "memory 40M", "memory 64M", "combine", "min 8M", "min 0", "systemcache 1M 4M hard", "systemcache 0 0",
			"pagefile add " + pages + ",size=1G,prio=3", "pagefile remove 0", "pagefile remove 1"}
		command := commands[r.IntN(len(commands))]
		if strings.HasPrefix(command, "pagefile remove") && len(m.pageFiles()) < 2 {
			return nil // what the jobs write would not fit
		}
		_ = m.tryCtl(command) // EBUSY is an answer too
		ofFile := []string{"trim", "flush", "prefetch", "prefetch 0 8M", "priority 1", "priority 6", "workingset 256K",
			"workingset 8M", "workingset 0"} // not what makes a write fail
		_ = echo(m.path(".proc/files", fmt.Sprint("fio", r.IntN(4)), "ctl"), ofFile[r.IntN(len(ofFile))])
		time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond)
		return nil
	})
	repeat(func(round int) error {
		b, err := os.ReadFile(m.path(".proc/check"))
		if err == nil && string(b) != "ok\n" {
			err = fmt.Errorf("check says %s", b)
		}
		time.Sleep(time.Second)
		return err
	})
	programs.Wait()
	run(t, m.dir, "sh", "-c", "rm -rf ./*")
	for f := m.pageFiles(); len(f) > 1; f = m.pageFiles() { // as many as at first
		m.ctl(fmt.Sprint("pagefile remove ", f[len(f)-1].Number))
	}
	stopWatch()
	if out, err := exec.Command("sh", "-c", "cat "+filepath.Join(m.dir, ".proc/vmstat")).Output(); err == nil {
		t.Logf("%s", out)
	}
}
