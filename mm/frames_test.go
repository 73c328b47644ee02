package mm

import (
	"bytes"
	"testing"

	"memfs/mm/pfn"
	"memfs/mm/store"
)

// whyOf is what Each says of why page of g is where it is.
func whyOf(g *Segment, page uint64) (why string) {
	g.Each(page, 1, func(p PageInfo) bool { why = p.Why; return false })
	return why
}

// TestWhyPagesMove takes a page through its life, and asks at each station how it came there.
func TestWhyPagesMove(t *testing.T) {
	const frames = 8
	b := Budget{Memory: 16 << 20, Frames: frames, HostBytes: 256 * PageSize, PageFile: 64, CommitLimit: 64 + frames}
	s, err := NewFromBudget(b, Config{PageFiles: []PageFileConfig{{Name: "test", Store: store.NewMem(), Max: 64}}})
	if err != nil {
		t.Fatal(err)
	}
	g := s.NewSegment(noHost{})
	data := bytes.Repeat([]byte{1}, PageSize)
	write := func(page uint64) {
		t.Helper()
		if err := g.Write(int64(page)<<PageShift, data); err != nil {
			t.Fatal(err)
		}
	}
	read := func(page uint64) {
		t.Helper()
		set, err := g.Read(int64(page)<<PageShift, PageSize, make([]byte, PageSize))
		if err != nil {
			t.Fatal(err)
		}
		set.Done()
	}
	is := func(want string) {
		t.Helper()
		if got := whyOf(g, 0); got != want {
			t.Fatalf("page 0 came where it is by %q, want %q", got, want)
		}
	}
	trim := func() {
		t.Helper()
		if _, err := g.Trim(); err != nil {
			t.Fatal(err)
		}
	}
	write(0)
	is(pfn.MakeValid.String())
	trim()
	is(pfn.TrimDirty.String())
	if _, err := s.FlushModified(); err != nil {
		t.Fatal(err)
	}
	is(pfn.SettleClean.String())
	s.EmptyStandby()
	is(pfn.Emptied.String())
	read(0)
	is(pfn.MakeValid.String())
	trim()
	is(pfn.TrimClean.String())
	for page := uint64(1); page <= frames; page++ {
		write(page)
	}
	is(pfn.Repurposed.String())
	trim()
	if _, err := s.FlushModified(); err != nil {
		t.Fatal(err)
	}
	read(0)
	for page := uint64(1); page <= frames; page++ { // all clean and Active: a frame is to be had from one of them only
		read(page)
	}
	for page := uint64(10); page < 10+frames; page++ {
		write(page)
	}
	is(pfn.Stolen.String())
	read(0) // into the reply: all frames are dirty and Active
	is(pfn.Stolen.String())
	write(0)
	is(pfn.Unplaced.String())

	if got, want := g.Faults(), (FaultCounts{DemandZero: 17, Soft: 5, Hard: 6}); got != want {
		t.Errorf("faults %+v, want %+v", got, want)
	}
	c := s.Snapshot().Counters
	if c.PagesStolen == 0 || c.PagesEmptied != 1 {
		t.Errorf("%d pages stolen, %d emptied; want some and 1", c.PagesStolen, c.PagesEmptied)
	}
	for _, err := range s.Check() {
		t.Error(err)
	}
	g.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestEachFrame: every frame is listed once, in order, with the page that it holds.
func TestEachFrame(t *testing.T) {
	const frames = 3*frameBatch + 5
	b := Budget{Memory: 16 << 20, Frames: frames, HostBytes: 256 * PageSize, CommitLimit: frames}
	s, err := NewFromBudget(b, Config{})
	if err != nil {
		t.Fatal(err)
	}
	g, p := s.NewSegment(noHost{}), s.NewSpace()
	if err := g.Write(5<<PageShift, make([]byte, 2*PageSize)); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(100, 100); err != nil {
		t.Fatal(err)
	}
	if err := p.Write(100<<PageShift, []byte{1}); err != nil {
		t.Fatal(err)
	}
	var n, active uint64
	var pages []uint64
	s.EachFrame(func(f *FrameInfo) bool {
		if n++; f.Frame != n {
			t.Fatalf("frame %d is listed as number %d", f.Frame, n)
		}
		if f.State == pfn.Active {
			active++
		}
		switch f.Use {
		case FileFrame:
			if f.Host != (noHost{}) || f.Space != nil || !f.Cached || f.Shares != 1 || !f.Dirty {
				t.Errorf("the file's frame is listed as %+v", f)
			}
			pages = append(pages, f.Page)
		case PrivateFrame:
			if f.Host != nil || f.Space != p || f.Page != 100 {
				t.Errorf("the process's frame is listed as %+v", f)
			}
			pages = append(pages, f.Page)
		}
		return true
	})
	snap := s.Snapshot()
	if n != snap.Frames || active != snap.Active {
		t.Errorf("%d frames are listed, %d of them active; there are %d and %d", n, active, snap.Frames, snap.Active)
	}
	if len(pages) != 3 {
		t.Errorf("pages %v are listed, want three", pages)
	}
	g.Delete()
	p.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
