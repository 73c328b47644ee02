package mm

import (
	"bytes"
	"testing"

	"memfs/mm/store"
)

// TestPartialWriteKeepsItsStandbyPage: a write of a whole page and a part of the next, which is the oldest page on
// Standby, on a machine with no other frame. The frame for the first page must not come from the second.
func TestPartialWriteKeepsItsStandbyPage(t *testing.T) {
	for _, frames := range []uint64{1, 2, 3} {
		b := Budget{Memory: 16 << 20, Frames: frames, HostBytes: 64 * PageSize, PageFile: 64, CommitLimit: 64}
		s, err := NewFromBudget(b, Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 64}}})
		if err != nil {
			t.Fatal(err)
		}
		g := s.NewSegment(noHost{})
		old := bytes.Repeat([]byte{1}, PageSize)
		if err := g.Write(PageSize, old); err != nil {
			t.Fatal(err)
		}
		if _, err := g.Trim(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.FlushModified(); err != nil {
			t.Fatal(err)
		}
		// What is left of the frames is filled with pages that cannot be taken.
		for i := uint64(1); i < frames; i++ {
			if err := g.Write(int64(10+i)*PageSize, old); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.Write(0, bytes.Repeat([]byte{2}, PageSize+10)); err != nil {
			t.Fatal(err)
		}
		for _, err := range s.Check() {
			t.Error(err)
		}
		set, err := g.Read(PageSize, PageSize, make([]byte, PageSize))
		if err != nil {
			t.Fatal(err)
		}
		want := append(bytes.Repeat([]byte{2}, 10), old[10:]...)
		if got := bytes.Join(set.Slices(), nil); !bytes.Equal(got, want) {
			t.Errorf("%d frames: the rest of the page is lost", frames)
		}
		set.Done()
		g.Delete()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
