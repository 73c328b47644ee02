package mm

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"memfs/mm/store"
)

// fill writes pages whose content is that of pages of which there are only so many.
func fill(t *testing.T, g *Segment, pages, kinds uint64) {
	t.Helper()
	for n := range pages {
		if err := g.Write(int64(n)*PageSize, content(n%kinds)); err != nil {
			t.Fatal(err)
		}
	}
}

// expectFill is what fill wrote.
func expectFill(t *testing.T, g *Segment, pages, kinds uint64) {
	t.Helper()
	for n := range pages {
		if got := readPage(t, g, n); !bytes.Equal(got, content(n%kinds)) {
			t.Fatalf("page %d holds something else", n)
		}
	}
}

func readPage(t *testing.T, g *Segment, n uint64) []byte {
	t.Helper()
	set, err := g.Read(int64(n)*PageSize, PageSize, make([]byte, PageSize))
	if err != nil {
		t.Fatalf("page %d: %v", n, err)
	}
	defer set.Done()
	return bytes.Clone(set.Slices()[0])
}

// TestCombine: pages of two files with ten different contents share ten frames, page by page, through everything that
// happens to pages, and one that is stored into has its own again.
func TestCombine(t *testing.T) {
	for _, compressed := range []bool{false, true} {
		c := Config{}
		if compressed {
			z, err := store.NewCompressed("s2", 2<<20)
			if err != nil {
				t.Fatal(err)
			}
			c.Compressed = &CompressedConfig{Store: z, Limit: 1 << 20, Slots: 1000}
		}
		m := newPagedMachine(t, c, 512, [2]uint64{1000, 0})
		other := m.s.NewSegment(noHost{})
		const pages, kinds = 100, 10
		fill(t, m.g, pages, kinds)
		fill(t, other, pages, kinds)
		if err := other.Write(pages*PageSize, []byte("alone")); err != nil {
			t.Fatal(err)
		}
		free := func() uint64 { s := m.s.Snapshot(); return s.Free + s.Zeroed }
		before := free()
		done, err := m.s.Combine()
		if err != nil || done.Scanned != 2*pages+1 || done.Joined != 2*pages-kinds || done.Freed != done.Joined {
			t.Fatalf("combined %+v, %v", done, err)
		}
		m.check()
		if got := free() - before; got < done.Freed-2 { // some for records
			t.Errorf("%d frames are free more", got)
		}
		if s := m.s.Snapshot(); s.Combined != kinds || s.CombinedSharers != 2*pages {
			t.Errorf("%d pages are shared by %d", s.Combined, s.CombinedSharers)
		}
		if done, err := m.s.Combine(); err != nil || done.Joined != 0 {
			t.Errorf("once more: %+v, %v", done, err)
		}
		m.check()
		m.g.Each(5, 1, func(p PageInfo) bool {
			if p.Sharers != 2*pages/kinds || p.Frame < 0 {
				t.Errorf("page 5: %+v", p)
			}
			return false
		})
		expectFill(t, m.g, pages, kinds)
		m.check()

		// Out and back.
		m.out()
		m.s.EmptyStandby()
		m.check()
		if s := m.s.Snapshot(); s.PageFiles[0].Used+s.Compressed.Pages > kinds+1 {
			t.Errorf("%d slots are in use, %d pages compressed", s.PageFiles[0].Used, s.Compressed.Pages)
		}
		expectFill(t, m.g, pages, kinds)
		expectFill(t, other, pages, kinds)
		m.check()

		// Copy on write: whole, in part, and while it is paged.
		m.out()
		m.s.EmptyStandby()
		if err := m.g.Write(3*PageSize, content(77)); err != nil {
			t.Fatal(err)
		}
		if err := m.g.Write(4*PageSize+100, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		m.check()
		want := content(4)
		copy(want[100:], "mine")
		if !bytes.Equal(readPage(t, m.g, 3), content(77)) || !bytes.Equal(readPage(t, m.g, 4), want) {
			t.Error("a store into a shared page is lost")
		}
		expectFill(t, other, pages, kinds)
		if n := m.s.Snapshot().Counters.WriteCopies; n != 2 {
			t.Errorf("%d pages were copied on write, want 2", n)
		}

		// A page with the same bytes joins those that are there.
		if err := m.g.Write(200*PageSize, content(7)); err != nil {
			t.Fatal(err)
		}
		if done, err := m.s.Combine(); err != nil || done.Joined != 1 {
			t.Errorf("one more page of a kind: %+v, %v", done, err)
		}
		m.check()

		// Holes and the end.
		other.Punch(0, 49)
		m.check()
		expectFill(t, m.g, 3, kinds)
		other.Delete()
		m.check()
		if s := m.s.Snapshot(); s.Combined != kinds {
			t.Errorf("%d pages are shared", s.Combined)
		}
		if !bytes.Equal(readPage(t, m.g, 200), content(7)) {
			t.Error("the last page holds something else")
		}
		m.g.Punch(0, 99)
		m.check()
		if s := m.s.Snapshot(); s.Combined != 1 || s.CombinedSharers != 1 {
			t.Errorf("%d pages are shared by %d", s.Combined, s.CombinedSharers)
		}
		m.close()
	}
}

// TestCombinePinned: pages that must stay in memory are not shared, and those that are shared are copied when they must.
func TestCombinePinned(t *testing.T) {
	m := newPagedMachine(t, Config{}, 256, [2]uint64{1000, 0})
	other := m.s.NewSegment(noHost{})
	fill(t, m.g, 20, 5)
	fill(t, other, 20, 5)
	rule := DefaultRule()
	rule.Pinned = true
	if _, err := other.SetRule(rule); err != nil {
		t.Fatal(err)
	}
	if done, err := m.s.Combine(); err != nil || done.Joined != 15 {
		t.Fatalf("combined %+v, %v", done, err)
	}
	m.check()
	m.out()
	m.s.EmptyStandby()
	if _, err := m.g.SetRule(rule); err != nil {
		t.Fatal(err)
	}
	m.check()
	if s := m.s.Snapshot(); s.Combined != 0 || s.CombinedSharers != 0 {
		t.Errorf("pinned pages share %d frames", s.Combined)
	}
	expectFill(t, m.g, 20, 5)
	expectFill(t, other, 20, 5)
	m.check()
	other.Delete()
	m.close()
}

// TestCombinedReadError: when the store has lost a shared page, every page that shares it is an error, and no other; storing
// a page anew heals it.
func TestCombinedReadError(t *testing.T) {
	m := newPagedMachine(t, Config{}, 256, [2]uint64{1000, 0})
	fill(t, m.g, 20, 5)
	if _, err := m.s.Combine(); err != nil {
		t.Fatal(err)
	}
	m.out()
	m.s.EmptyStandby()
	m.flaky[0].SetFaults(store.Fault{Kind: store.Fail, Ops: store.OpRead, Errno: unix.EIO})
	for n := range int64(20) {
		if _, err := m.g.Read(n*PageSize, PageSize, make([]byte, PageSize)); !errors.Is(err, StatusInPageError) {
			t.Fatalf("page %d: %v", n, err)
		}
	}
	if err := m.g.Write(PageSize, []byte("in part")); !errors.Is(err, StatusInPageError) {
		t.Fatalf("storing in part: %v", err)
	}
	m.check()
	if err := m.g.Write(6*PageSize, content(1)); err != nil {
		t.Fatal(err)
	}
	m.check()
	m.flaky[0].SetFaults()
	expectFill(t, m.g, 20, 5)
	m.close()
}

// TestCombineWithoutFrames: shared pages on a machine that is too small for anything: read into replies, stored into slots,
// copied, moved to another page file.
func TestCombineWithoutFrames(t *testing.T) {
	m := newPagedMachine(t, Config{}, 24, [2]uint64{1000, 0}, [2]uint64{1000, 0})
	fill(t, m.g, 16, 4)
	if done, err := m.s.Combine(); err != nil || done.Joined == 0 {
		t.Fatalf("combined %+v, %v", done, err)
	}
	m.out()
	m.s.EmptyStandby()
	// Pinned pages take all frames.
	var held []*ReadSet
	for n := uint64(0); ; n++ {
		if err := m.g.Write(int64(100+n)*PageSize, content(n)); err != nil {
			t.Fatal(err)
		}
		set, err := m.g.Read(int64(100+n)*PageSize, PageSize, alignedPage())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, set)
		if set.frames[0] == 0 {
			break
		}
	}
	expectFill(t, m.g, 16, 4)
	if err := m.g.Write(2*PageSize+8, []byte("direct")); err != nil {
		t.Fatal(err)
	}
	if err := m.g.Write(3*PageSize, content(9)); err != nil {
		t.Fatal(err)
	}
	m.check()
	want := content(2)
	copy(want[8:], "direct")
	if !bytes.Equal(readPage(t, m.g, 2), want) || !bytes.Equal(readPage(t, m.g, 3), content(9)) {
		t.Error("stores are lost")
	}
	for _, set := range held {
		set.Done()
	}
	if _, err := m.s.RemovePageFile(0); err != nil {
		t.Fatal(err)
	}
	m.check()
	for n := uint64(4); n < 16; n++ {
		if !bytes.Equal(readPage(t, m.g, n), content(n%4)) {
			t.Errorf("page %d holds something else", n)
		}
	}
	m.close()
}

// TestCombinedView: a process that maps a file whose pages are shared has its own from the first touch on, and what it
// stores is not seen in other files; pages that a process maps are not combined.
func TestCombinedView(t *testing.T) {
	m := newPagedMachine(t, Config{}, 256, [2]uint64{1000, 0})
	other := m.s.NewSegment(noHost{})
	fill(t, m.g, 20, 5)
	fill(t, other, 20, 5)
	if _, err := m.s.Combine(); err != nil {
		t.Fatal(err)
	}
	p := m.s.NewSpace()
	v, err := p.Map(0x100, 0x113, m.g, 0)
	if err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if err := v.Read(0x100<<PageShift, b[:]); err != nil || !bytes.Equal(b[:], content(0)[:8]) {
		t.Fatalf("%x, %v", b, err)
	}
	if err := v.Write(0x103<<PageShift, []byte("process")); err != nil {
		t.Fatal(err)
	}
	m.check()
	if done, err := m.s.Combine(); err != nil || done.Joined != 0 {
		t.Fatalf("with two pages mapped: %+v, %v", done, err)
	}
	m.check()
	expectFill(t, other, 20, 5)
	want := content(3)
	copy(want, "process")
	if !bytes.Equal(readPage(t, m.g, 3), want) || !bytes.Equal(readPage(t, m.g, 8), content(3)) {
		t.Error("the store is lost, or is seen where it is not")
	}
	v.Unmap()
	p.Delete()
	other.Delete()
	m.close()
}
