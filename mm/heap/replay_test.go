package heap

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// trace is what a real program asked of malloc, recorded by testdata/record.c: cc1 compiling a small C program with -O2,
// and sqlite3 with an in-memory database, on Debian 12 with glibc 2.36.
type trace struct {
	name   string
	calls  []traced
	blocks int

	peakAsked  uint64 // bytes: live blocks as asked for, at most
	peakUsable uint64 // bytes: their malloc_usable_size and glibc's eight before each
	peakSystem uint64 // bytes: what glibc had from the system, sampled
}

type traced struct {
	kind byte // a, r, f
	id   int
	size uint64
}

func loadTrace(t testing.TB, name string) *trace {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".txt.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	tr := &trace{name: name}
	type sizes struct{ asked, usable uint64 }
	var live []sizes
	var sum sizes
	set := func(id int, s sizes) {
		sum.asked += s.asked - live[id].asked
		sum.usable += s.usable - live[id].usable
		live[id] = s
		tr.peakAsked = max(tr.peakAsked, sum.asked)
		tr.peakUsable = max(tr.peakUsable, sum.usable)
	}
	for lines := bufio.NewScanner(z); lines.Scan(); {
		kind, rest, _ := strings.Cut(lines.Text(), " ")
		var c traced
		var usable uint64
		switch c.kind = kind[0]; c.kind {
		case 's':
			var n uint64
			fmt.Sscan(rest, &n)
			tr.peakSystem = max(tr.peakSystem, n)
			continue
		case 'a':
			c.id = tr.blocks
			tr.blocks++
			live = append(live, sizes{})
			_, err = fmt.Sscan(rest, &c.size, &usable)
			set(c.id, sizes{c.size, usable + 8})
		case 'r':
			_, err = fmt.Sscan(rest, &c.id, &c.size, &usable)
			set(c.id, sizes{c.size, usable + 8})
		case 'f':
			_, err = fmt.Sscan(rest, &c.id)
			set(c.id, sizes{})
		}
		if err != nil {
			t.Fatalf("%s: %q: %v", name, lines.Text(), err)
		}
		tr.calls = append(tr.calls, c)
	}
	return tr
}

// replay does a trace's calls on the default heap. each is called after every one.
func (tr *trace) replay(t testing.TB, thread *Thread, each func(n int)) {
	blocks := make([]uint64, tr.blocks)
	for n, c := range tr.calls {
		var err error
		switch c.kind {
		case 'a':
			blocks[c.id], err = thread.Malloc(c.size)
		case 'r':
			blocks[c.id], err = thread.HeapReAlloc(thread.GetProcessHeap(), 0, blocks[c.id], c.size)
		case 'f':
			err = thread.Free(blocks[c.id])
		}
		if err != nil {
			t.Fatalf("%s, call %d: %+v: %v", tr.name, n, c, err)
		}
		if each != nil {
			each(n)
		}
	}
}

func TestReplay(t *testing.T) {
	step := 500
	if testing.Short() {
		step = 10000
	}
	for _, name := range []string{"cc1", "sqlite"} {
		tr := loadTrace(t, name)
		space, thread := heapOf(t, 8, Options{})
		h := thread.GetProcessHeap()
		var worst Report
		tr.replay(t, thread, func(n int) {
			if n%step != 0 {
				return
			}
			if ok, _ := thread.HeapValidate(h, 0, 0); !ok {
				t.Fatalf("%s: the heap is damaged after call %d", name, n)
			}
			r, err := thread.Report(h)
			if err != nil {
				t.Fatal(err)
			}
			if now, _ := space.used(); r.Committed != now {
				t.Fatalf("%s: the heap says that %d bytes are committed, the space %d", name, r.Committed, now)
			}
			if r.BusyBytes > worst.BusyBytes {
				worst = r
			}
		})
		_, peak := space.used()
		t.Logf("%s: %d calls; at most %d bytes live (glibc: %d with headers and rounding), %d committed (glibc: %d from "+
			"the system); at the fullest %d blocks, overhead %.1f %%, fragmentation %.2f, %d buckets", name, len(tr.calls),
			tr.peakAsked, tr.peakUsable, peak, tr.peakSystem, worst.BusyBlocks,
			100*float64(worst.Overhead)/float64(worst.BusyBytes), worst.Fragmentation, len(worst.Buckets))
		if peak > tr.peakAsked+tr.peakAsked/4+0x20000 {
			t.Errorf("%s: %d bytes committed for %d bytes live", name, peak, tr.peakAsked)
		}
	}
}

// processorTime is what this process has used: other programs may use the machine as well.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkReplay(b *testing.B) {
	for _, name := range []string{"cc1", "sqlite"} {
		b.Run(name, func(b *testing.B) {
			tr := loadTrace(b, name)
			var committed uint64
			before := processorTime(b)
			for b.Loop() {
				space := newFakeSpace(8)
				heaps, err := New(space, Options{Random: seeded(1)})
				if err != nil {
					b.Fatal(err)
				}
				tr.replay(b, heaps.Thread(context.Background()), nil)
				_, committed = space.used()
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(b.N*len(tr.calls)), "cpu-ns/call")
			b.ReportMetric(float64(committed)/float64(tr.peakAsked), "committed/live")
			b.ReportMetric(float64(tr.peakSystem)/float64(tr.peakAsked), "glibc-system/live")
			b.ReportMetric(0, "ns/op")
		})
	}
}
