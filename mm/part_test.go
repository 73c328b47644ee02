package mm

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"memfs/mm/pfn"
	"memfs/mm/store"
)

// TestParts has a reader on each of more files than the PFN lock has parts, and one in a process's memory, take soft faults
// with a part of the lock, while others do with all of it what there is to do to pages. Check must hold at any moment, every
// byte be right, and every fault be counted.
func TestParts(t *testing.T) {
	const (
		files  = pfn.Parts + 3
		pages  = 2 * ViewPages
		frames = files * pages * 7 / 8
		twins  = 2 // files that are the same
	)
	reads := 2000
	if testing.Short() {
		reads = 200
	}
	b := Budget{Memory: 16 << 20, Frames: frames, HostBytes: frames * PageSize, PageFile: 4 * frames, CommitLimit: 5 * frames}
	s, err := NewFromBudget(b, Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 4 * frames}}})
	mustDo(t, err)

	fill := func(file int, page uint64, buf []byte) {
		word := uint64(max(file, twins-1))<<32 | page
		for i := 0; i < len(buf); i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], word)
		}
	}
	all := make([]*Segment, files)
	for file := range all {
		all[file] = s.NewSegment(noHost{})
		for page := uint64(0); page < pages; page++ {
			buf := make([]byte, PageSize)
			fill(file, page, buf)
			mustDo(t, all[file].Write(int64(page)<<PageShift, buf))
		}
	}
	space := s.NewSpace()
	mustDo(t, space.Commit(0, pages-1))
	for page := uint64(0); page < pages; page++ {
		buf := make([]byte, PageSize)
		fill(files, page, buf)
		mustDo(t, space.Write(page<<PageShift, buf))
	}

	var readers, others sync.WaitGroup
	stop := make(chan struct{})
	for file, g := range all {
		readers.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(file)))
			want, reply := make([]byte, PageSize), make([]byte, 8*PageSize)
			var held []*ReadSet
			for i := range reads {
				if i%64 == 0 {
					if _, err := g.Trim(); err != nil {
						t.Error(err)
					}
				}
				n := 1 + random.IntN(8)
				page := uint64(random.IntN(pages - n + 1))
				set, err := g.Read(int64(page)<<PageShift, n*PageSize, reply)
				if err != nil {
					t.Errorf("file %d page %d: %v", file, page, err)
					return
				}
				for i, got := range set.Slices() {
					if fill(file, page+uint64(i), want); string(got) != string(want) {
						t.Errorf("file %d page %d is wrong", file, page+uint64(i))
					}
				}
				if held = append(held, set); len(held) > random.IntN(4) {
					held[0].Done()
					held = held[1:]
				}
			}
			for _, set := range held {
				set.Done()
			}
		})
	}
	readers.Go(func() {
		random := rand.New(rand.NewPCG(2, 0))
		got, want := make([]byte, PageSize), make([]byte, PageSize)
		for range reads {
			page := random.Uint64N(pages)
			if err := space.Read(page<<PageShift, got); err != nil {
				t.Errorf("private page %d: %v", page, err)
				return
			}
			if fill(files, page, want); string(got) != string(want) {
				t.Errorf("private page %d is wrong", page)
			}
		}
	})
	for i, step := range []func(random *rand.Rand) error{
		func(random *rand.Rand) error { _, err := all[random.IntN(files)].Trim(); return err },
		func(random *rand.Rand) error { _, err := s.FlushModified(); return err },
		func(random *rand.Rand) error {
			buf, file, page := make([]byte, PageSize), random.IntN(files), random.Uint64N(pages)
			fill(file, page, buf)
			n := 8 * (1 + random.IntN(PageSize/8))
			return all[file].Write(int64(page)<<PageShift, buf[:n])
		},
		func(random *rand.Rand) error {
			switch random.IntN(16) {
			case 0:
				s.EmptyStandby()
			case 1:
				_, err := s.Combine()
				return err
			case 2:
				space.Empty()
			case 3:
				if _, err := s.SetSystemCache(CacheLimits{Max: frames / (1 + random.Uint64N(4)), Hard: true}); err != nil {
					return err
				}
				_, err := s.SetSystemCache(CacheLimits{})
				return err
			case 4:
				s.AddHostPages(200)
				s.TrimStep()
				s.AddHostPages(-200)
			case 5:
				rule := Rule{Priority: uint8(random.IntN(pfn.Priorities))}
				if random.IntN(8) == 0 {
					rule.MaxResident = LeastResident
				}
				_, err := all[random.IntN(files)].SetRule(rule)
				return err
			default:
				s.BalanceStep()
				s.TrimStep()
			}
			return nil
		},
		func(random *rand.Rand) error {
			for _, err := range s.Check() {
				return err
			}
			return nil
		},
	} {
		others.Go(func() {
			random := rand.New(rand.NewPCG(3, uint64(i)))
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := step(random); err != nil {
					t.Error(fmt.Errorf("step %d: %w", i, err))
					return
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	others.Wait()
	mustCheck(t, s)

	// With nobody else, nothing but a part is needed.
	inPart := func() (n uint64) {
		for i := range s.tallies {
			n += s.tallies[i].soft
		}
		return n
	}
	before := inPart()
	for _, touch := range []bool{true, false, true} { // first back into frames, if they are not there
		if !touch {
			_, err := s.TrimAll()
			mustDo(t, err)
			continue
		}
		_, err := all[twins].SetRule(DefaultRule())
		mustDo(t, err)
		set, err := all[twins].Read(0, pages*PageSize, nil)
		mustDo(t, err)
		set.Done()
	}
	if n := inPart() - before; n < ViewPages { // the first view's may have a look at the limit
		t.Errorf("%d of %d soft faults took a part of the lock only", n, pages)
	}
	t.Logf("before, %d soft faults did, with %d in all", before, s.Snapshot().Counters.TransitionFaults)

	c := s.Snapshot().Counters
	soft := space.seg.Faults().Soft + s.combined.seg.Faults().Soft
	for _, g := range all {
		soft += g.Faults().Soft
	}
	if soft != c.TransitionFaults {
		t.Errorf("%d soft faults were taken, counted %d", soft, c.TransitionFaults)
	}
	for _, g := range all {
		g.Delete()
	}
	space.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
