package process

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"memfs/mm/heap"
)

// replayed is one call of a trace: see mm/heap/testdata/record.c.
type replayed struct {
	kind byte // a, r, f
	id   int
	size uint64
}

func loadReplay(b *testing.B, name string) (calls []replayed, blocks int) {
	f, err := os.Open("../heap/testdata/" + name + ".txt.gz")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		b.Fatal(err)
	}
	for lines := bufio.NewScanner(z); lines.Scan(); {
		kind, rest, _ := strings.Cut(lines.Text(), " ")
		c := replayed{kind: kind[0]}
		switch c.kind {
		case 's':
			continue
		case 'a':
			c.id = blocks
			blocks++
			_, err = fmt.Sscan(rest, &c.size)
		case 'r':
			_, err = fmt.Sscan(rest, &c.id, &c.size)
		case 'f':
			_, err = fmt.Sscan(rest, &c.id)
		}
		if err != nil {
			b.Fatalf("%s: %q: %v", name, lines.Text(), err)
		}
		calls = append(calls, c)
	}
	return calls, blocks
}

// replay makes the calls of a trace on the heap of a new process with so many frames. each is called every 100 calls.
func replay(b *testing.B, frames uint64, calls []replayed, n int, each func(*heap.Thread)) (peak, paged uint64) {
	sys := newSystem(b, frames, 16384)
	machine := NewMachine(sys, OptIn, Listener{})
	p, err := machine.Start(Image{Arch: X64})
	if err != nil {
		b.Fatal(err)
	}
	heaps, err := p.Heaps()
	if err != nil {
		b.Fatal(err)
	}
	thread := heaps.Thread(context.Background())
	blocks := make([]uint64, n)
	for i, c := range calls {
		switch c.kind {
		case 'a':
			blocks[c.id], err = thread.Malloc(c.size)
		case 'r':
			blocks[c.id], err = thread.HeapReAlloc(thread.GetProcessHeap(), 0, blocks[c.id], c.size)
		case 'f':
			err = thread.Free(blocks[c.id])
		}
		if err != nil {
			b.Fatalf("call %d: %v", i, err)
		}
		if each != nil && i%100 == 0 {
			each(thread)
		}
	}
	peak, paged = p.MemoryInfo().PeakPagefile, sys.Snapshot().Counters.PagesOutput
	machine.End(p)
	if err := sys.Close(); err != nil {
		b.Fatal(err)
	}
	return peak, paged
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkReplay replays what real programs asked of malloc on the heap of a process: with frames for all of it, and with
// 64, where its headers are paged in and out. Processor time is reported, for other programs may use the machine as well.
func BenchmarkReplay(b *testing.B) {
	for _, name := range []string{"cc1", "sqlite"} {
		calls, n := loadReplay(b, name)
		var fullest heap.Report
		replay(b, 8192, calls, n, func(t *heap.Thread) {
			r, err := t.Report(t.GetProcessHeap())
			if err != nil {
				b.Fatal(err)
			}
			if r.Committed > fullest.Committed {
				fullest = r
			}
		})
		for _, frames := range []uint64{8192, 64} {
			b.Run(fmt.Sprintf("%s/%d-frames", name, frames), func(b *testing.B) {
				var peak, paged uint64
				before := processorTime(b)
				for b.Loop() {
					peak, paged = replay(b, frames, calls, n, nil)
				}
				b.ReportMetric(float64(processorTime(b)-before)/float64(b.N*len(calls)), "cpu-ns/call")
				b.ReportMetric(float64(peak), "peak-bytes")
				b.ReportMetric(100*float64(fullest.FreeBytes)/float64(fullest.Committed), "%free-then")
				b.ReportMetric(float64(paged), "pages-out")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
