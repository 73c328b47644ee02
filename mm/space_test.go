package mm

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"memfs/mm/store"
)

func newPagingSystem(t testing.TB, frames, slots uint64) *System {
	t.Helper()
	b := Budget{Memory: 16 << 20, Frames: frames, HostBytes: 64 * PageSize, PageFile: slots, CommitLimit: frames + slots}
	s, err := NewFromBudget(b, Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: slots}}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustCheck(t testing.TB, s *System) {
	t.Helper()
	for _, err := range s.Check() {
		t.Error(err)
	}
}

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pageOut empties the working set and the standby list, so that what is worth it is in the page file only.
func pageOut(t testing.TB, s *System, p *Space) {
	t.Helper()
	p.Empty()
	if _, err := s.FlushModified(); err != nil {
		t.Fatal(err)
	}
	s.EmptyStandby()
	mustCheck(t, s)
}

// high is a page number near the end of a 47-bit address space.
const high = 1<<35 - 100

func TestSpaceLife(t *testing.T) {
	s := newPagingSystem(t, 32, 256)
	p := s.NewSpace()
	b := make([]byte, 10)
	if err := p.Read(high<<PageShift, b); err != StatusNotCommitted {
		t.Fatalf("reading what is not committed: %v", err)
	}
	if err := p.Write(high<<PageShift, b); err != StatusNotCommitted {
		t.Fatalf("writing what is not committed: %v", err)
	}
	mustDo(t, p.Commit(high, high+79))
	if got := s.Snapshot(); p.Committed() != 80 || p.Resident() != 0 || got.Spaces != 1 || got.Sections != 0 {
		t.Fatalf("after the commit: %d committed, %d resident, %d spaces", p.Committed(), p.Resident(), got.Spaces)
	}
	if err := p.Write((high+80)<<PageShift-1, b); err != StatusNotCommitted {
		t.Fatalf("writing past the end: %v", err)
	}
	mustDo(t, p.Read(high<<PageShift+5, b))
	if i := p.Page(high); p.Resident() != 1 || i.State != StateActive || !i.Dirty {
		t.Fatalf("a page read for the first time is %+v", i)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 80*PageSize/16)
	mustDo(t, p.Write(high<<PageShift, data))
	mustCheck(t, s)
	pageOut(t, s, p)
	if i := p.Page(high + 79); p.Resident() != 0 || i.State != StatePaged {
		t.Fatalf("paged out: %+v", i)
	}
	got := make([]byte, len(data)-7)
	mustDo(t, p.Read(high<<PageShift+7, got))
	if !bytes.Equal(got, data[7:]) {
		t.Fatal("what came back is not what was written")
	}
	mustDo(t, p.Write(high<<PageShift+100, []byte("patch")))
	p.Decommit(high+1, high+79)
	mustCheck(t, s)
	mustDo(t, p.Read(high<<PageShift+98, b))
	if want := string(data[98:100]) + "patch" + string(data[105:108]); string(b) != want {
		t.Fatalf("read %q, want %q", b, want)
	}
	if err := p.Read((high+1)<<PageShift, b); err != StatusNotCommitted {
		t.Fatalf("reading what was decommitted: %v", err)
	}
	p.Delete()
	if err := p.Read(high<<PageShift, b); err != StatusDeleted {
		t.Fatalf("reading what was deleted: %v", err)
	}
	mustDo(t, s.Close())
}

func TestSpaceReset(t *testing.T) {
	s := newPagingSystem(t, 32, 64)
	p := s.NewSpace()
	mustDo(t, p.Commit(100, 109))
	fill := func() {
		for i := uint64(100); i < 108; i++ {
			mustDo(t, p.Write(i<<PageShift, []byte{byte(i)}))
		}
	}
	at := func(page uint64) byte {
		var b [1]byte
		mustDo(t, p.Read(page<<PageShift, b[:]))
		return b[0]
	}
	fill()
	p.Reset(100, 109)
	if at(100) != 100 || !p.UndoReset(100, 109) || at(101) != 101 {
		t.Error("a page reset while resident was lost at once")
	}
	p.Reset(100, 109)
	mustDo(t, p.Write(100<<PageShift, []byte{7})) // worth something again
	out := s.Snapshot().Counters.PagesOutput
	pageOut(t, s, p)
	if n := s.Snapshot().Counters.PagesOutput - out; n != 1 {
		t.Errorf("%d pages written out, want the one that was written after the reset", n)
	}
	if at(100) != 7 || at(101) != 0 || p.UndoReset(100, 109) {
		t.Error("what left the working set after a reset was kept, or UndoReset says so")
	}
	fill()
	pageOut(t, s, p)
	p.Reset(102, 102)
	if p.UndoReset(102, 102) || at(102) != 0 || at(103) != 103 {
		t.Error("a page reset while paged out was kept, or its neighbour lost")
	}
	fill()
	p.Discard(101, 105)
	if at(101) != 0 || at(100) != 100 || at(106) != 106 || p.Committed() != 10 {
		t.Error("discard took too much or too little")
	}
	mustCheck(t, s)
	p.Delete()
	mustDo(t, s.Close())
}

func TestSpaceLock(t *testing.T) {
	s := newPagingSystem(t, 32, 256)
	p, q := s.NewSpace(), s.NewSpace()
	mustDo(t, p.Commit(0, 63))
	mustDo(t, q.Commit(0, 63))
	mustDo(t, p.Lock(3, 7, 8))
	mustDo(t, p.Lock(5, 9, 8)) // locks do not nest, so these are two more
	if err := p.Lock(5, 12, 8); err != StatusWorkingSetQuota {
		t.Errorf("locking more than may be: %v", err)
	}
	if err := p.Lock(10, 60, 100); err != StatusNoFrames {
		t.Errorf("locking more than half the machine: %v", err)
	}
	mustDo(t, q.Write(0, make([]byte, 64*PageSize)))
	p.Empty()
	if p.Resident() != 7 || p.Locked() != 7 || !p.Page(9).Locked || p.Page(10).Locked {
		t.Errorf("%d resident and %d locked of 7", p.Resident(), p.Locked())
	}
	mustCheck(t, s)
	if p.Unlock(9, 10) {
		t.Error("unlocking a page that was not locked succeeded")
	}
	if !p.Unlock(3, 4) || p.Page(3).Locked || !p.Page(5).Locked {
		t.Error("unlocking two pages went wrong")
	}
	p.Decommit(5, 6)
	if p.Locked() != 2 || s.Snapshot().Locked != 2 {
		t.Errorf("%d locked after decommit, want 2", p.Locked())
	}
	mustCheck(t, s)
	p.Delete()
	q.Delete()
	mustDo(t, s.Close())
}

func TestSpaceLimits(t *testing.T) {
	s := newPagingSystem(t, 256, 512)
	p := s.NewSpace()
	p.SetLimits(5, 20)
	mustDo(t, p.Commit(0, 199))
	for i := uint64(0); i < 200; i++ {
		mustDo(t, p.Write(i<<PageShift, []byte{1}))
		if n := p.Resident(); n > 20 {
			t.Fatalf("%d pages in a working set of at most 20", n)
		}
	}
	mustCheck(t, s)
	pageOut(t, s, p)
	if n, err := p.Prefetch(0, 99); err != nil || n == 0 || p.Resident() != 0 {
		t.Errorf("prefetch brought in %d pages, %d into the working set (%v)", n, p.Resident(), err)
	}
	mustCheck(t, s)
	p.Delete()
	mustDo(t, s.Close())
}

// TestSpaceCheckFinds damages a space's books one at a time.
//
// +checklocksignore
func TestSpaceCheckFinds(t *testing.T) {
	for _, c := range []struct {
		damage string
		do     func(s *System, l *leaf)
		want   string
	}{
		{"nothing", func(*System, *leaf) {}, ""},
		{"a lock is lost", func(s *System, l *leaf) { s.locked-- }, "are locked"},
		{"a page is locked without a pin", func(s *System, l *leaf) { l.host |= 2; s.locked++ }, "not held"},
		{"a working set is miscounted", func(s *System, l *leaf) { s.rec.workingSets[l.seg].now++ }, "working set"},
		{"a working set is forgotten", func(s *System, l *leaf) { delete(s.rec.workingSets, l.seg) }, "that is gone"},
	} {
		s := newPagingSystem(t, 32, 64)
		p := s.NewSpace()
		mustDo(t, p.Commit(0, 9))
		mustDo(t, p.Write(0, make([]byte, 3*PageSize)))
		mustDo(t, p.Lock(0, 0, 9))
		s.pfn.Lock()
		c.do(s, s.rec.leaves.At(1))
		s.pfn.Unlock()
		switch found := errors.Join(s.Check()...); {
		case c.want == "" && found != nil:
			t.Errorf("%s: found %v", c.damage, found)
		case c.want != "" && (found == nil || !strings.Contains(found.Error(), c.want)):
			t.Errorf("%s: found %v, want %q", c.damage, found, c.want)
		}
	}
}

// TestSpacesCompete runs processes that together want several times the frames there are, with every daemon running.
func TestSpacesCompete(t *testing.T) {
	const spaces, pages = 6, 200
	s := newPagingSystem(t, 128, 4096)
	s.Start()
	var wg sync.WaitGroup
	for n := range spaces {
		wg.Go(func() { runSpace(t, s, uint64(n), pages) })
	}
	stop := make(chan struct{})
	var checker sync.WaitGroup
	checker.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				mustCheck(t, s)
			}
		}
	})
	wg.Wait()
	close(stop)
	checker.Wait()
	if c := s.Snapshot().Counters; c.PagesInput == 0 || c.PagesOutput == 0 || c.TransitionFaults == 0 {
		t.Errorf("no paging went on: %+v", c)
	}
	mustDo(t, s.Close())
}

func runSpace(t *testing.T, s *System, seed, pages uint64) {
	steps := 3000
	if testing.Short() {
		steps = 800
	}
	p := s.NewSpace()
	rnd := rand.New(rand.NewPCG(seed, 9))
	model := make(map[uint64]string)
	if err := p.Commit(0, pages-1); err != nil {
		t.Error(err)
		return
	}
	for i := range steps {
		page := rnd.Uint64N(pages)
		at := page<<PageShift + 4090 // across a page border
		switch rnd.IntN(20) {
		case 0:
			p.Empty()
		case 1:
			p.Decommit(page, page)
			if err := p.Commit(page, page); err != nil {
				t.Error(err)
			}
			model[page] = ""
			delete(model, page-1) // half of its text went
		case 2:
			_ = p.Lock(page, page, 3)
			p.Unlock(page, page)
		case 3, 4, 5, 6, 7, 8:
			if page == pages-1 {
				continue
			}
			text := fmt.Sprintf("%5d %5d", seed, i)
			if err := p.Write(at, []byte(text)); err != nil {
				t.Error(err)
			}
			model[page] = text
		default:
			if model[page] == "" || page == pages-1 {
				continue
			}
			b := make([]byte, 11)
			if err := p.Read(at, b); err != nil || string(b) != model[page] {
				t.Errorf("process %d page %d: read %q (%v), want %q", seed, page, b, err, model[page])
				return
			}
		}
	}
	p.Delete()
}

// TestIdleSpaceGivesWay: an idle process that has all frames gives them to a file that is written, without a word from it.
func TestIdleSpaceGivesWay(t *testing.T) {
	s := newPagingSystem(t, 64, 256)
	idle, floor := s.NewSpace(), s.NewSpace()
	floor.SetLimits(8, 0)
	mustDo(t, idle.Commit(0, 55))
	mustDo(t, floor.Commit(0, 7))
	for i := uint64(0); i < 8; i++ {
		mustDo(t, floor.Write(i<<PageShift, []byte{1}))
	}
	for i := uint64(0); i < 56; i++ {
		mustDo(t, idle.Write(i<<PageShift, []byte{1}))
	}
	before := idle.Resident()
	s.balanceSpaces()
	if idle.Resident() >= before && before > 40 {
		t.Errorf("%d pages resident, and still %d after balancing", before, idle.Resident())
	}
	if floor.Resident() == 0 {
		t.Error("a process at its minimum gave its pages before one above it was empty")
	}
	g := s.NewSegment(noHost{})
	mustDo(t, g.Write(0, bytes.Repeat([]byte{2}, 16*PageSize)))
	mustCheck(t, s)
	g.Delete()
	idle.Delete()
	floor.Delete()
	mustDo(t, s.Close())
}
