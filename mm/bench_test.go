package mm

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"memfs/mm/store"
)

// The four kinds of fault, one page at a time, with one thread and with two, each on a file or a process of its own. Only
// the faults are timed: what brings the pages back to where they fault from is done in between.

const (
	benchFrames = 32 << 10
	benchPages  = 8 << 10 // of each thread
)

// faulting is one thread of a benchmark.
type faulting struct {
	reset func()         // brings all pages back
	fault func(page int) // takes a fault on one
	end   func()
}

func benchFaults(b *testing.B, make func(b *testing.B, s *System, thread int) faulting) {
	for _, threads := range []int{1, 2} {
		b.Run(fmt.Sprintf("threads=%d", threads), func(b *testing.B) {
			s := benchSystem(b)
			all := []faulting{}
			for t := range threads {
				all = append(all, make(b, s, t))
			}
			b.ResetTimer()
			b.StopTimer()
			peak := 0.0 // in the round that other programs disturbed least
			for done := 0; done < b.N; {
				n := min(benchPages, (b.N-done+threads-1)/threads)
				before := b.Elapsed()
				together(threads, func(thread int) { all[thread].reset() }, b.StartTimer, func(thread int) {
					for page := range n {
						all[thread].fault(page)
					}
				})
				b.StopTimer()
				done += n * threads
				if n == benchPages {
					peak = max(peak, float64(n*threads)/(b.Elapsed()-before).Seconds())
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mfaults/s")
			b.ReportMetric(peak/1e6, "peak-Mfaults/s")
			for _, f := range all {
				f.end()
			}
			if err := s.Close(); err != nil {
				b.Error(err)
			}
		})
	}
}

// together has threads prepare one after the other, and then run f at once. begin is called between, when all of them have a
// processor: how long the scheduler takes to find one is no part of what is measured, nor is the fetching of what another
// processor has prepared.
func together(threads int, prepare func(thread int), begin func(), f func(thread int)) {
	var ready atomic.Int32
	var begun atomic.Bool
	var wg sync.WaitGroup
	for t := 1; t < threads; t++ {
		wg.Go(func() {
			for int(ready.Load()) < t-1 {
				runtime.Gosched()
			}
			prepare(t)
			ready.Add(1)
			for !begun.Load() {
			}
			f(t)
		})
	}
	for int(ready.Load()) < threads-1 {
		runtime.Gosched()
	}
	prepare(0)
	begin()
	begun.Store(true)
	f(0)
	wg.Wait()
}

// benchSystem is large enough for everything, and its daemons do not run: nothing but the faults happens.
func benchSystem(b *testing.B) *System {
	budget := Budget{Memory: 256 << 20, Frames: benchFrames, HostBytes: 256 << 20, PageFile: benchFrames, CommitLimit: 2 * benchFrames}
	s, err := NewFromBudget(budget, Config{PageFiles: []PageFileConfig{{Name: "bench", Store: store.NewMem(), Max: benchFrames}}})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// benchFile is a file of a thread's, all of whose pages were written.
func benchFile(b *testing.B, s *System) *Segment {
	g := s.NewSegment(noHost{})
	if err := g.Write(0, make([]byte, benchPages*PageSize)); err != nil {
		b.Fatal(err)
	}
	return g
}

// reading takes a fault on a page, as a READ does.
func (g *Segment) benchRead(b *testing.B, page int, reply []byte) {
	set, err := g.Read(int64(page)<<PageShift, PageSize, reply)
	if err != nil {
		b.Error(err)
		return
	}
	set.Done()
}

// BenchmarkSoftFault takes pages back from Standby.
func BenchmarkSoftFault(b *testing.B) {
	benchFaults(b, func(b *testing.B, s *System, thread int) faulting {
		g, reply := benchFile(b, s), alignedPage()
		return faulting{
			reset: func() {
				if _, err := g.Trim(); err != nil {
					b.Fatal(err)
				}
				if _, err := s.FlushModified(); err != nil {
					b.Fatal(err)
				}
			},
			fault: func(page int) { g.benchRead(b, page, reply) },
			end:   g.Delete,
		}
	})
}

// BenchmarkHardFault reads pages back from a page file in memory: what it costs beside the disk.
func BenchmarkHardFault(b *testing.B) {
	benchFaults(b, func(b *testing.B, s *System, thread int) faulting {
		g, reply := benchFile(b, s), alignedPage()
		return faulting{
			reset: func() {
				if _, err := g.Trim(); err != nil {
					b.Fatal(err)
				}
				if _, err := s.FlushModified(); err != nil {
					b.Fatal(err)
				}
				s.EmptyStandby()
			},
			// In an order that no read-ahead can guess.
			fault: func(page int) { g.benchRead(b, page*4099%benchPages, reply) },
			end:   g.Delete,
		}
	})
}

// BenchmarkDemandZeroFault stores into pages that were never written.
func BenchmarkDemandZeroFault(b *testing.B) {
	benchFaults(b, func(b *testing.B, s *System, thread int) faulting {
		g, data := benchFile(b, s), []byte{1}
		return faulting{
			reset: func() { g.Punch(0, benchPages) },
			fault: func(page int) {
				if err := g.Write(int64(page)<<PageShift, data); err != nil {
					b.Error(err)
				}
			},
			end: g.Delete,
		}
	})
}

// BenchmarkPrivateFault touches committed pages of a process for the first time.
func BenchmarkPrivateFault(b *testing.B) {
	benchFaults(b, func(b *testing.B, s *System, thread int) faulting {
		p := s.NewSpace()
		return faulting{
			reset: func() {
				p.Decommit(0, benchPages-1)
				if err := p.Commit(0, benchPages-1); err != nil {
					b.Fatal(err)
				}
			},
			fault: func(page int) {
				if err := p.Write(uint64(page)<<PageShift, []byte{1}); err != nil {
					b.Error(err)
				}
			},
			end: p.Delete,
		}
	})
}

// BenchmarkWriteCopyFault stores into pages that share a frame with another file's: each gets its own again.
func BenchmarkWriteCopyFault(b *testing.B) {
	benchFaults(b, func(b *testing.B, s *System, thread int) faulting {
		g, data := benchFile(b, s), make([]byte, benchPages*PageSize)
		for page := range benchPages { // no two pages of a file are the same, so that each shares with one of the other threads'
			data[page*PageSize], data[page*PageSize+1] = byte(page), byte(page>>8)
		}
		twin := s.NewSegment(noHost{})
		return faulting{
			reset: func() {
				for _, f := range []*Segment{g, twin} {
					if err := f.Write(0, data); err != nil {
						b.Fatal(err)
					}
					if _, err := f.Trim(); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := s.Combine(); err != nil {
					b.Fatal(err)
				}
			},
			fault: func(page int) {
				if err := g.Write(int64(page)<<PageShift+8, data[:1]); err != nil {
					b.Error(err)
				}
			},
			end: func() {
				if n := s.Snapshot().Counters.WriteCopies; n < uint64(min(b.N, benchPages)) {
					b.Errorf("%d pages were copied", n)
				}
				g.Delete()
				twin.Delete()
			},
		}
	})
}
