package process

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestViewStress has processes count in words of their own on pages that all of them map, and in copies, while pages are
// trimmed, written out, unmapped and mapped anew: no count is lost, and none goes back.
func TestViewStress(t *testing.T) {
	const pages, workers = 12, 6
	rounds := 400
	if testing.Short() {
		rounds = 30
	}
	sys := newSystem(t, 28, 1024)
	m := NewMachine(sys, OptIn, Listener{})
	sys.Start()
	keeper, err := m.Start(Image{Arch: X64})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := keeper.CreateSection(NoHandle, uint32(ExecuteReadWrite), pages*PageSize, "counters", false); err != nil {
		t.Fatal(err)
	}
	var counts [workers][pages]atomic.Uint64
	var stop atomic.Bool
	var helpers, group sync.WaitGroup
	fail := func(what string, err error) bool {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		return err != nil
	}
	for _, f := range []func() error{
		func() error { keeper.EmptyWorkingSet(); return nil },
		func() error { _, err := sys.FlushModified(); return err },
		func() error { sys.EmptyStandby(); return nil },
		func() error { _, err := sys.Combine(); return err },
		func() error {
			for _, p := range m.Processes() {
				p.EmptyWorkingSet()
			}
			return nil
		},
		func() error {
			for _, err := range append(sys.Check(), m.Check()...) {
				return err
			}
			return nil
		},
	} {
		helpers.Go(func() {
			for !stop.Load() && !fail("helper", f()) {
			}
		})
	}
	for w := range workers {
		group.Go(func() {
			p, err := m.Start(Image{Arch: X64})
			if fail("start", err) {
				return
			}
			defer m.End(p)
			h, err := p.OpenSection(FileMapAllAccess, false, "counters")
			if fail("open", err) {
				return
			}
			random := rand.New(rand.NewPCG(uint64(w), 1))
			for r := 0; r < rounds && !t.Failed(); r++ {
				if fail("round", p.countRound(h, w, random, counts[w][:], func(at int, other int) uint64 {
					return counts[other][at].Load()
				})) {
					return
				}
			}
		})
	}
	group.Wait()
	stop.Store(true)
	helpers.Wait()
	m.End(keeper)
	if err := sys.Close(); err != nil {
		t.Error(err)
	}
}

type lostCount struct{ want, got uint64 }

func (e lostCount) Error() string { return "a count was lost" }

// countRound counts one up on some pages, in a view for all to see and then in copies, which nobody may see.
func (p *Process) countRound(h Handle, me int, random *rand.Rand, mine []atomic.Uint64, known func(page, who int) uint64) error {
	v, err := p.MapView(h, ViewRequest{Protection: ReadWrite})
	if err != nil {
		return err
	}
	c, err := p.MapView(h, ViewRequest{Protection: WriteCopy})
	if err != nil {
		return err
	}
	word := make([]byte, 8)
	for range 8 {
		page := random.IntN(len(mine))
		at := uint64(page)*PageSize + uint64(me)*64
		n := mine[page].Load()
		if err := p.Read(v+at, word); err != nil {
			return err
		}
		if got := binary.LittleEndian.Uint64(word); got != n {
			return lostCount{n, got}
		}
		binary.LittleEndian.PutUint64(word, n+1)
		if err := p.Write(v+at, word); err != nil {
			return err
		}
		mine[page].Store(n + 1)
		other := (me + 1) % 6
		least := known(page, other)
		if err := p.Read(v+uint64(page)*PageSize+uint64(other)*64, word); err != nil {
			return err
		}
		if got := binary.LittleEndian.Uint64(word); got < least {
			return lostCount{least, got}
		}
		// A copy keeps what it was given, and nobody else sees it.
		binary.LittleEndian.PutUint64(word, 1<<63|uint64(me))
		if err := p.Write(c+at, word); err != nil {
			return err
		}
		if random.IntN(4) == 0 {
			if _, err := p.Protect(v, 4*PageSize, ReadOnly); err != nil {
				return err
			}
			if _, err := p.Protect(v, 4*PageSize, ReadWrite); err != nil {
				return err
			}
		}
		if err := p.Read(c+at, word); err != nil {
			return err
		}
		if got := binary.LittleEndian.Uint64(word); got != 1<<63|uint64(me) {
			return lostCount{1<<63 | uint64(me), got}
		}
	}
	if err := p.UnmapView(c, 0); err != nil {
		return err
	}
	return p.UnmapView(v+1, 0)
}
