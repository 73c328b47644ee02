package mm

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"memfs/mm/store"
)

// TestViewWithoutFrames stores and loads through a view while every frame has a dirty page of the system cache: what is
// stored goes straight to slots, and what is loaded comes from there into buffers.
func TestViewWithoutFrames(t *testing.T) {
	const frames = 16
	s, err := NewFromBudget(
		Budget{Memory: 16 << 20, Frames: frames, HostBytes: 4 * frames * PageSize, PageFile: 64, CommitLimit: frames + 64},
		Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 64}}},
	)
	if err != nil {
		t.Fatal(err)
	}
	full, g := s.NewSegment(noHost{}), s.NewSegment(nil)
	p := s.NewSpace()
	v, err := p.Map(100, 103, g, 7)
	if err != nil {
		t.Fatal(err)
	}
	if err := full.Write(0, bytes.Repeat([]byte{1}, (frames+4)*PageSize)); err != nil {
		t.Fatal(err)
	}
	at := uint64(100 << PageShift)
	put := func(off uint64, data []byte) {
		t.Helper()
		if err := v.Write(at+off, data); err != nil {
			t.Fatal(err)
		}
		for _, err := range s.Check() {
			t.Error(err)
		}
	}
	direct := s.n.directWrites.Load()
	put(PageSize-2, []byte{2, 3, 4, 5})
	put(PageSize, []byte{6})
	if s.n.directWrites.Load() == direct {
		t.Error("there were frames")
	}
	b := make([]byte, 5)
	if err := v.Read(at+PageSize-2, b); err != nil || !bytes.Equal(b, []byte{2, 3, 6, 5, 0}) {
		t.Errorf("%v, %v", b, err)
	}
	if n := p.Resident(); n != 0 {
		t.Errorf("%d pages entered the working set without frames", n)
	}
	if _, err := s.TrimAll(); err != nil {
		t.Fatal(err)
	}
	if err := v.Read(at+PageSize-2, b); err != nil || !bytes.Equal(b, []byte{2, 3, 6, 5, 0}) {
		t.Errorf("with frames: %v, %v", b, err)
	}
	if n := p.Resident(); n != 2 {
		t.Errorf("%d pages in the working set", n)
	}
	g.Punch(0, 8) // as a program that cuts the file off
	if err := v.Read(at+PageSize-2, b); err != nil || !bytes.Equal(b, make([]byte, 5)) {
		t.Errorf("after a punch: %v, %v", b, err)
	}
	for _, err := range s.Check() {
		t.Error(err)
	}
	v.Unmap()
	p.Delete()
	g.Delete()
	full.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestViewStoreFails stores across two pages, of which the second can be written nowhere: the first has been stored into, and
// keeps that when it leaves memory.
func TestViewStoreFails(t *testing.T) {
	const frames = 256
	flaky := store.NewFlaky(store.NewMem(), 1)
	s, err := NewFromBudget(
		Budget{Memory: 16 << 20, Frames: frames, HostBytes: 4 * frames * PageSize, PageFile: 512, CommitLimit: frames + 448},
		Config{PageFiles: []PageFileConfig{{Name: "test", Store: flaky, Max: 512}}},
	)
	if err != nil {
		t.Fatal(err)
	}
	full, g := s.NewSegment(noHost{}), s.NewSegment(nil)
	p := s.NewSpace()
	v, err := p.Map(100, 103, g, 0)
	if err != nil {
		t.Fatal(err)
	}
	const at = uint64(100 << PageShift)
	out := func() {
		t.Helper()
		p.Empty()
		for {
			if n, err := s.writeCluster(0); err != nil {
				t.Fatal(err)
			} else if n == 0 {
				return
			}
		}
	}
	if err := v.Write(at+PageSize-2, []byte{1, 1}); err != nil {
		t.Fatal(err)
	}
	out()
	b := make([]byte, 2)
	if err := v.Read(at+PageSize-2, b); err != nil { // a clean page
		t.Fatal(err)
	}
	if err := full.Write(0, make([]byte, (frames+4)*PageSize)); err != nil {
		t.Fatal(err)
	}
	flaky.SetFaults(store.Fault{Ops: store.OpWrite, Errno: unix.EIO})
	if err := v.Write(at+PageSize-2, []byte{2, 2, 3}); err == nil {
		t.Error("the store did not fail")
	}
	flaky.SetFaults()
	full.Punch(0, frames+4)
	out()
	if err := full.Write(0, make([]byte, (frames+4)*PageSize)); err != nil { // takes the frame
		t.Fatal(err)
	}
	if err := v.Read(at+PageSize-2, b); err != nil || !bytes.Equal(b, []byte{2, 2}) {
		t.Errorf("the first page has %v, %v", b, err)
	}
	for _, err := range s.Check() {
		t.Error(err)
	}
	v.Unmap()
	p.Delete()
	g.Delete()
	full.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
