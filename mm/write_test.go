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

// TestPartialWriteOfAnotherVersion: a part of a page is written, which is read for it, and before it is laid down others write
// the page until its copy is in the slot again in which it was. What they wrote must not be lost.
func TestPartialWriteOfAnotherVersion(t *testing.T) {
	b := Budget{Memory: 16 << 20, Frames: 1, HostBytes: 64 * PageSize, PageFile: 4, CommitLimit: 4}
	s, err := NewFromBudget(b, Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 4}}})
	if err != nil {
		t.Fatal(err)
	}
	g := s.NewSegment(noHost{})
	page := func(b byte) []byte { return bytes.Repeat([]byte{b}, PageSize) }
	write := func(off int64, data []byte) {
		t.Helper()
		if err := g.Write(off, data); err != nil {
			t.Fatal(err)
		}
	}
	write(10*PageSize, page(9)) // has the frame from now on
	write(0, page(1))

	w := newWriting(g, false)
	w.off, w.data = 100, []byte{2, 2, 2}
	if _, read, err := w.try(); err != nil || read == nil {
		t.Fatalf("the page is not to be read: %v", err)
	}
	if err := w.readBack(0); err != nil {
		t.Fatal(err)
	}
	was, last := g.pteOf(0), byte(1)
	for last == 1 || g.pteOf(0) != was {
		if last++; last == 100 {
			t.Fatal("the page is never in that slot again")
		}
		write(0, page(last))
	}
	for {
		_, read, err := w.try()
		if err != nil {
			t.Fatal(err)
		}
		if read == nil {
			break
		}
		if err := w.readBack(*read); err != nil {
			t.Fatal(err)
		}
	}
	w.done()
	set, err := g.Read(0, PageSize, make([]byte, PageSize))
	if err != nil {
		t.Fatal(err)
	}
	want := page(last)
	copy(want[100:], []byte{2, 2, 2})
	if got := bytes.Join(set.Slices(), nil); !bytes.Equal(got, want) {
		t.Errorf("the page is %v…, of the last write it would be %v…", got[:4], want[:4])
	}
	set.Done()
	for _, err := range s.Check() {
		t.Error(err)
	}
	g.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
