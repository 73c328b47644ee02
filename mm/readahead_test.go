package mm

import (
	"bytes"
	"testing"

	"memfs/mm/store"
)

// TestReadAhead: a fault on one page brings its neighbours to Standby with the same read, the next touch of one is a soft
// fault, and a segment whose neighbours are never touched stops reading them.
func TestReadAhead(t *testing.T) {
	const frames, pages = 256, 2048
	b := Budget{Memory: 16 << 20, Frames: frames, HostBytes: 16 * PageSize, PageFile: 4096, CommitLimit: 4096}
	s, err := NewFromBudget(b, Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 4096}}})
	if err != nil {
		t.Fatal(err)
	}
	g := s.NewSegment(noHost{})
	for p := range int64(pages) {
		if err := g.Write(p*PageSize, bytes.Repeat([]byte{byte(p)}, PageSize)); err != nil {
			t.Fatal(err)
		}
		if p%ViewPages == ViewPages-1 {
			if _, err := g.Trim(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.FlushModified(); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.EmptyStandby()
	read := func(p int64) {
		t.Helper()
		set, err := g.Read(p*PageSize, PageSize, make([]byte, PageSize))
		if err != nil {
			t.Fatal(err)
		}
		if got := set.Slices()[0]; got[0] != byte(p) || got[PageSize-1] != byte(p) {
			t.Fatalf("page %d holds the bytes of page %d", p, got[0])
		}
		set.Done()
		for _, err := range s.Check() {
			t.Fatal(err)
		}
	}
	read(803)
	c := s.Snapshot().Counters
	if c.HardFaults != 1 || c.PageReads != 1 || c.PagesReadAhead != aheadFirst-1 {
		t.Fatalf("one fault: %d hard faults, %d reads, %d pages ahead", c.HardFaults, c.PageReads, c.PagesReadAhead)
	}
	if info := s.leafInfo(g.leafOf(800)); info[800%ViewPages].State != StateStandby || info[803%ViewPages].State != StateActive {
		t.Fatalf("page 800 is %c, page 803 %c", info[800%ViewPages].State, info[803%ViewPages].State)
	}
	read(800)
	if c := s.Snapshot().Counters; c.HardFaults != 1 || c.TransitionFaults != 1 || c.ReadAheadHits != 1 {
		t.Fatalf("touch of a page read ahead: %d hard, %d soft faults, %d hits", c.HardFaults, c.TransitionFaults, c.ReadAheadHits)
	}
	for i := range int64(1500) {
		read(i * 37 % pages / 8 * 8)
		if i%50 == 0 {
			if _, err := g.Trim(); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := s.Snapshot().Counters
	for i := range int64(100) {
		read(i * 37 % pages / 8 * 8)
	}
	after := s.Snapshot().Counters
	if ahead, faults := after.PagesReadAhead-before.PagesReadAhead, after.HardFaults-before.HardFaults; ahead > faults {
		t.Errorf("%d pages read ahead of %d faults, though none was ever touched", ahead, faults)
	}
	g.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// leafOf is the leaf of a page.
func (g *Segment) leafOf(page uint64) uint32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.leafAt(page >> viewShift)
}
