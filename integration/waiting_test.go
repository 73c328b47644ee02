package integration

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWaitingRules fills the mount with requests that wait for a slow page file, reading and writing, from more programs
// than the host kernel lets requests through, while trim wants to launder and unmap their files. Handlers may wait for
// the page file only: so statfs, which needs nothing of it, still answers, and so does everything else in the end.
func TestWaitingRules(t *testing.T) {
	m := mountMemfs(t, options{memory: "32M", pageFile: "512M", limit: 5 * time.Minute,
		flags: []string{"--inject", "slow=" + short("30ms", "15ms")}})
	const files, size = 24, 4 << 20
	for i := range files {
		if err := writeContent(m.path(fmt.Sprint(i)), i, size); err != nil {
			t.Fatal(err)
		}
	}
	m.pageOut()

	var quit atomic.Bool
	var programs sync.WaitGroup
	for i := range files {
		programs.Go(func() { // readers of paged-out files
			for !quit.Load() {
				if err := compareContent(m.path(fmt.Sprint(i)), i, size); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 8 {
		programs.Go(func() { // writers, of more than there are frames
			for n := 0; !quit.Load(); n++ {
				name := m.path(fmt.Sprint("w", i))
				if err := writeContent(name, n, size); err != nil {
					t.Error(err)
					return
				}
				if err := compareContent(name, n, size); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	stopTrim := m.trimLoop(0)

	var slowest time.Duration
	asked := 0
	for end := time.Now().Add(short(20*time.Second, 5*time.Second)); time.Now().Before(end); asked++ {
		began := time.Now()
		var st unix.Statfs_t
		if err := unix.Statfs(m.dir, &st); err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadDir(m.dir); err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadFile(m.path(".proc/vmstat")); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(began))
		time.Sleep(20 * time.Millisecond)
	}
	if slowest > time.Minute { // a machine may be busy; what hangs, hangs for ever
		t.Errorf("statfs, readdir and vmstat together took up to %v", slowest)
	}
	quit.Store(true)
	programs.Wait()
	trims := stopTrim()
	if trims == 0 {
		t.Error("nothing could be trimmed meanwhile")
	}
	t.Logf("statfs, readdir and vmstat: asked %d times, at most %v; trimmed %d times", asked, slowest, trims)
}

// TestManyPrograms has a dozen programs do different things with the same files at the same time.
func TestManyPrograms(t *testing.T) {
	program := compileC(t, "testdata/mmap.c")
	for _, env := range [][]string{nil, {"GOMAXPROCS=1"}} {
		t.Run(fmt.Sprint(env), func(t *testing.T) {
			m := mountMemfs(t, options{memory: "32M", pageFile: "512M", env: env})
			stop := m.trimLoop(0)
			source := goSource(t, "net")
			var programs sync.WaitGroup
			start := func(name string, args ...string) {
				programs.Go(func() {
					if _, err := tryRun(m.dir, "", name, args...); err != nil {
						t.Error(err)
					}
				})
			}
			for i := range 3 {
				start("sh", "-c", fmt.Sprintf("for i in 1 2 3; do cp -a %s t%d && diff -r %s t%d && rm -rf t%d; done", source, i, source, i, i))
				start(program, "shared", fmt.Sprint("shared", i), "8")
				start(program, "coherent", fmt.Sprint("coherent", i), "300")
			}
			start("sh", "-c", "for i in $(seq 100); do stat -f . && cat .proc/vmstat .proc/meminfo.json && find . | wc -l; done >/dev/null 2>&1")
			start("sh", "-c", "for i in $(seq 30); do cat .proc/check; done | sort -u | diff - "+okFile(t))
			programs.Wait()
			if stop() == 0 {
				t.Error("nothing was trimmed")
			}
		})
	}
}

// okFile is a file that says ok.
func okFile(t testing.TB) string {
	t.Helper()
	name := scratch(t) + "/ok"
	must(t, os.WriteFile(name, []byte("ok\n"), 0o644))
	return name
}
