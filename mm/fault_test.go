package mm

import (
	"bytes"
	"testing"

	"memfs/mm/store"
)

// hookStore calls a function before it reads.
type hookStore struct {
	store.Store
	beforeRead func()
}

func (h *hookStore) ReadSlots(slot uint64, bufs [][]byte) error {
	if h.beforeRead != nil {
		h.beforeRead()
	}
	return h.Store.ReadSlots(slot, bufs)
}

// TestTrimDuringHardFault: a trim goes by while a page is read back, which the host does not wait for, as with O_DIRECT.
// The page is in the working set afterwards, so that it can leave again.
func TestTrimDuringHardFault(t *testing.T) {
	b := Budget{Memory: 16 << 20, Frames: 8, HostBytes: 64 * PageSize, PageFile: 64, CommitLimit: 64}
	h := &hookStore{Store: store.NewMem()}
	s, err := NewFromBudget(b, Config{PageFiles: []PageFileConfig{{Name: "test", Store: h, Max: 64}}})
	if err != nil {
		t.Fatal(err)
	}
	g := s.NewSegment(noHost{})
	if err := g.Write(0, bytes.Repeat([]byte{1}, PageSize)); err != nil {
		t.Fatal(err)
	}
	trim := func() uint64 {
		t.Helper()
		n, err := g.Trim()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	trim()
	if _, err := s.FlushModified(); err != nil {
		t.Fatal(err)
	}
	s.EmptyStandby()

	trims := 0
	h.beforeRead = func() { trims++; trim() }
	set, err := g.Read(0, PageSize, make([]byte, PageSize))
	if err != nil {
		t.Fatal(err)
	}
	set.Done()
	if trims != 1 {
		t.Fatalf("%d reads of the page, want 1", trims)
	}
	for _, err := range s.Check() {
		t.Error(err)
	}
	if n := trim(); n != 1 {
		t.Errorf("%d pages left the working set, want the one that was read", n)
	}
	g.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestReadOverHolesWithoutRecords: when no record can be made for a view over a hole, a read across it and written pages
// is served, and the written pages are in the working set all the same, so that they can leave it again.
func TestReadOverHolesWithoutRecords(t *testing.T) {
	b := Budget{Memory: 16 << 20, Frames: 40, HostBytes: 400 * PageSize, CommitLimit: 20}
	s, err := NewFromBudget(b, Config{})
	if err != nil {
		t.Fatal(err)
	}
	g := s.NewSegment(noHost{})
	// A written page at the end of each second view, holes between.
	for view := int64(0); view < 4; view += 2 {
		if err := g.Write(view*ViewPages*PageSize+63*PageSize, bytes.Repeat([]byte{1}, PageSize)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.Trim(); err != nil {
		t.Fatal(err)
	}
	ballast := 0
	for ; s.ChargeRecord(8) == nil; ballast += 8 { // to the last byte
	}
	before := s.recordBytes()
	set, err := g.Read(0, 4*ViewPages*PageSize, make([]byte, 4*ViewPages*PageSize))
	if err != nil {
		t.Fatal(err)
	}
	set.Done()
	if s.recordBytes() != before {
		t.Error("a record was made: the test needs a full budget")
	}
	for _, err := range s.Check() {
		t.Error(err)
	}
	if n, err := g.Trim(); n != 2 || err != nil {
		t.Errorf("%d pages left the working set, %v; want the two that were written", n, err)
	}
	s.ReleaseRecord(ballast)
	g.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
