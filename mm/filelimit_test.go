package mm

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

// residents counts a file's pages that are in frames, and those that the host may hold.
func residents(g *Segment) (frames, host uint64) {
	g.Each(0, MaxSize>>PageShift, func(p PageInfo) bool {
		if p.Frame >= 0 {
			frames++
		}
		if p.Host {
			host++
		}
		return true
	})
	return frames, host
}

func limitTo(t *testing.T, g *Segment, pages uint32) {
	t.Helper()
	r := g.Rule()
	r.MaxResident = pages
	if _, err := g.SetRule(r); err != nil {
		t.Fatal(err)
	}
}

// TestFileLimit: a file with a working-set limit has no more pages in memory, and in the host, than that, however much it is
// written and read; its own oldest leave, and no other file's, though frames are plenty.
func TestFileLimit(t *testing.T) {
	m := newPagedMachine(t, Config{}, 4096, [2]uint64{4096, 0})
	other := m.s.NewSegment(noHost{})
	fill(t, other, 300, 300)
	const most, pages = 128, 640
	limitTo(t, m.g, most)
	m.check()
	steps := func() {
		t.Helper()
		for range 2 { // what is trimmed is evicted next
			m.s.TrimStep()
			if _, err := m.s.WriteStep(); err != nil {
				t.Fatal(err)
			}
		}
		m.check()
		if frames, host := residents(m.g); frames > most || host > most {
			t.Errorf("%d pages are in frames and %d in the host, want %d at most", frames, host, most)
		}
	}
	for n := uint64(0); n < pages; n += 64 {
		for i := n; i < n+64; i++ {
			mustDo(t, m.g.Write(int64(i)*PageSize, content(i)))
		}
		steps()
	}
	paged := 0
	m.g.Each(0, pages, func(p PageInfo) bool {
		if in := p.Index >= pages-most; in != (p.State == StateActive) {
			t.Errorf("page %d is %c", p.Index, p.State)
		}
		if p.State == StatePaged {
			if paged++; p.Why != "Limited" {
				t.Errorf("page %d left memory: %s", p.Index, p.Why)
			}
		}
		return true
	})
	if got := m.s.Snapshot().Counters.PagesLimited; paged != pages-most || got != uint64(paged) {
		t.Errorf("%d pages left, and %d are counted; want %d", paged, got, pages-most)
	}
	// Oldest is what was mapped first, wherever it lies: the view that was read last stays.
	for _, n := range []uint64{300, 20} {
		if !bytes.Equal(readPage(t, m.g, n), content(n)) {
			t.Errorf("page %d holds something else", n)
		}
	}
	for i := uint64(128); i < 128+63; i++ {
		readPage(t, m.g, i)
	}
	steps()
	for _, n := range []uint64{20, 130} {
		m.g.Each(n, 1, func(p PageInfo) bool {
			if p.State != StateActive {
				t.Errorf("page %d, which was read last, is %c", n, p.State)
			}
			return true
		})
	}
	if n, err := m.g.Prefetch(0, pages); err != nil || n > most {
		t.Errorf("%d pages were prefetched, %v", n, err)
	}
	steps()
	for n := range uint64(pages) {
		if !bytes.Equal(readPage(t, m.g, n), content(n)) {
			t.Fatalf("page %d holds something else", n)
		}
	}
	steps()
	if frames, host := residents(other); frames != 300 || host != 300 {
		t.Errorf("of the other file %d pages are in frames and %d in the host", frames, host)
	}

	// Lifted, and set again on what is there; a command does it at once.
	limitTo(t, m.g, 0)
	m.check()
	expectContent(t, m.g, pages)
	m.s.TrimStep()
	if frames, host := residents(m.g); frames != pages || host != pages {
		t.Errorf("without a limit %d pages are in frames and %d in the host", frames, host)
	}
	limitTo(t, m.g, most+64)
	trimmed, evicted, err := m.g.Bound()
	if err != nil || trimmed != pages-most-64 || evicted != trimmed {
		t.Errorf("%d pages were trimmed and %d evicted, %v", trimmed, evicted, err)
	}
	m.check()
	limitTo(t, m.g, most)
	steps()

	for _, bad := range []struct {
		rule Rule
		want string
	}{
		{Rule{MaxResident: LeastResident - 1}, "256K or more"},
		{Rule{MaxResident: 100, Pinned: true}, "unpin or swap first"},
		{Rule{MaxResident: 100, NoSwap: true}, "workingset 0"},
	} {
		if _, err := m.g.SetRule(bad.rule); !errors.Is(err, StatusInvalidParameter) || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%+v: %v, want %s", bad.rule, err, bad.want)
		}
	}
	other.Delete()
	m.close()
}

func expectContent(t *testing.T, g *Segment, pages uint64) {
	t.Helper()
	for n := range pages {
		if !bytes.Equal(readPage(t, g, n), content(n)) {
			t.Fatalf("page %d holds something else", n)
		}
	}
}

// TestFileLimitMapped: pages that a process has in its working set stay, and leave when they have left that; without a place
// to write pages to, only the host's copies are bounded.
func TestFileLimitMapped(t *testing.T) {
	m := newPagedMachine(t, Config{}, 1024, [2]uint64{1024, 0})
	m.write(0, 255)
	p := m.s.NewSpace()
	v, err := p.Map(0x100, 0x1ff, m.g, 0)
	mustDo(t, err)
	mustDo(t, v.Touch(0x100, 0x1ff))
	limitTo(t, m.g, 64)
	if _, evicted, err := m.g.Bound(); err != nil || evicted != 0 {
		t.Errorf("%d pages of a working set left memory, %v", evicted, err)
	}
	m.check()
	p.Empty()
	if _, evicted, err := m.g.Bound(); err != nil || evicted != 192 {
		t.Errorf("%d pages left memory, %v; want 192", evicted, err)
	}
	m.check()
	v.Unmap()
	p.Delete()
	m.close()

	m = newPagedMachine(t, Config{}, 1024)
	fill(t, m.g, 256, 256)
	limitTo(t, m.g, 64)
	if trimmed, evicted, err := m.g.Bound(); err != nil || trimmed != 192 || evicted != 0 {
		t.Errorf("%d pages were trimmed and %d left memory, %v", trimmed, evicted, err)
	}
	expectFill(t, m.g, 256, 256)
	m.close()
}
