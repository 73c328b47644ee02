package mm

import (
	"bytes"
	"errors"
	"testing"
)

// TestOffer: offered pages are lost before any other when frames are wanted, and are zeros then; those that are touched or
// reclaimed before that are kept, and nothing of them is written anywhere meanwhile.
func TestOffer(t *testing.T) {
	m := newPagedMachine(t, Config{}, 128, [2]uint64{1000, 0})
	other := m.s.NewSegment(noHost{})
	for n := range uint64(40) {
		if err := m.g.Write(int64(n)*PageSize, content(n)); err != nil {
			t.Fatal(err)
		}
	}
	n, err := m.g.Offer(0, MaxSize>>PageShift, 0)
	if err != nil || n != 40 {
		t.Fatalf("%d pages offered, %v", n, err)
	}
	m.check()
	if s := m.s.Snapshot(); s.Standby[0] != 40 || s.PageFiles[0].Used != 0 {
		t.Fatalf("%d pages on standby list 0, %d slots", s.Standby[0], s.PageFiles[0].Used)
	}
	if written, err := m.s.FlushModified(); err != nil || written != 0 {
		t.Fatalf("%d pages written, %v", written, err)
	}
	if !bytes.Equal(readPage(t, m.g, 7), content(7)) { // and so it is kept
		t.Error("an offered page holds something else")
	}
	m.check()
	for n := range uint64(100) {
		if err := other.Write(int64(n)*PageSize, content(n)); err != nil {
			t.Fatal(err)
		}
	}
	m.check()
	o := m.g.Reclaim(0, MaxSize>>PageShift)
	m.check()
	if o.Lost == 0 || o.Reclaimed+o.Lost != 39 {
		t.Fatalf("%+v", o)
	}
	lost := uint64(0)
	for n := range uint64(40) {
		switch got := readPage(t, m.g, n); {
		case bytes.Equal(got, content(n)):
		case bytes.Equal(got, make([]byte, PageSize)):
			lost++
		default:
			t.Errorf("page %d holds something else", n)
		}
	}
	if lost != o.Lost || m.s.Snapshot().Counters.PagesLost != lost {
		t.Errorf("%d pages are zeros, %d lost, counted %d", lost, o.Lost, m.s.Snapshot().Counters.PagesLost)
	}
	if m.g.Pages() != 40 {
		t.Error("a lost page is promised no more")
	}
	if o := m.g.Reclaim(0, MaxSize>>PageShift); o != (Offered{}) {
		t.Errorf("once more: %+v", o)
	}

	// Offered and emptied, deleted, moved to other frames.
	if _, err := m.g.Offer(0, MaxSize>>PageShift, 3); err != nil {
		t.Fatal(err)
	}
	m.g.Punch(0, 4)
	m.check()
	if r, err := m.s.Resize(Budget{Memory: 64 << 20, Frames: 110, HostBytes: 1024 * PageSize, PageFile: 1000, CommitLimit: 1106}); err != nil {
		t.Fatalf("%+v, %v", r, err)
	}
	m.check()
	m.s.EmptyStandby()
	m.check()
	rule := DefaultRule()
	rule.Pinned = true
	if _, err := m.g.SetRule(rule); err != nil {
		t.Fatal(err)
	}
	if _, err := m.g.Offer(0, MaxSize>>PageShift, 0); !errors.Is(err, StatusInvalidParameter) {
		t.Errorf("offering pinned pages: %v", err)
	}
	other.Delete()
	m.close()
}

// TestSystemCacheLimits: the system cache's working set keeps to a hard maximum always, to a soft one while frames are short,
// and want of frames does not take it below its minimum.
func TestSystemCacheLimits(t *testing.T) {
	m := newPagedMachine(t, Config{}, 512, [2]uint64{2000, 0})
	if _, err := m.s.SetSystemCache(CacheLimits{Min: 200, Max: 100}); !errors.Is(err, StatusInvalidParameter) {
		t.Errorf("a minimum above the maximum: %v", err)
	}
	if _, err := m.s.SetSystemCache(CacheLimits{Max: 1 << 30}); !errors.Is(err, StatusInvalidParameter) {
		t.Errorf("more than the host's share: %v", err)
	}
	pages := func() uint64 { _, n := m.s.SystemCache(); return n }
	touch := func(n uint64) {
		t.Helper()
		for page := range n {
			if err := m.g.Write(int64(page)*PageSize, content(page)); err != nil {
				t.Fatal(err)
			}
		}
	}
	touch(300)
	m.s.TrimStep()
	if pages() != 300 {
		t.Fatalf("%d pages, want all 300", pages())
	}
	if moved, err := m.s.SetSystemCache(CacheLimits{Max: 128, Hard: true}); err != nil || moved < 172 || pages() > 128 {
		t.Fatalf("%d moved, %v; %d pages", moved, err, pages())
	}
	touch(300)
	m.s.TrimStep()
	if pages() > 128 {
		t.Errorf("%d pages, hard maximum 128", pages())
	}
	if _, err := m.s.SetSystemCache(CacheLimits{Min: 64, Max: 128}); err != nil {
		t.Fatal(err)
	}
	touch(300)
	m.s.TrimStep()
	if pages() != 300 {
		t.Errorf("%d pages with frames to spare, soft maximum 128", pages())
	}
	touch(520) // no frames to spare
	m.s.TrimStep()
	m.check()
	if n := pages(); n > 128 || n < 64 {
		t.Errorf("%d pages with no frames to spare, soft maximum 128, minimum 64", n)
	}
	m.close()
}

// TestBalanceSet: when frames are short, processes above their maximum give first, then all in proportion to what they have
// above their minimum, and a hard minimum holds.
func TestBalanceSet(t *testing.T) {
	m := newPagedMachine(t, Config{}, 600, [2]uint64{4000, 0})
	make := func(pages uint64, b WorkingSetBounds) *Space {
		t.Helper()
		p := m.s.NewSpace()
		p.SetBounds(b)
		if err := p.Commit(0, pages-1); err != nil {
			t.Fatal(err)
		}
		for n := range pages {
			if err := p.Write(n<<PageShift, content(n)); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	fat := make(200, WorkingSetBounds{Min: 10, Max: 150})
	lean := make(100, WorkingSetBounds{Min: 10, Max: 150})
	firm := make(100, WorkingSetBounds{Min: 90, Max: 150, HardMin: true})
	short := func(want uint64) { // frames, so that the balance set is to give so many
		t.Helper()
		for n := uint64(0); ; n++ {
			m.s.pfn.Lock()
			have := m.s.pfn.Available() + m.s.pfn.ModifiedCount()
			low := m.s.lowFrames()
			m.s.pfn.Unlock()
			if have+want <= 2*low {
				return
			}
			if n > 1000 {
				t.Fatalf("frames do not get short: %d, low mark %d: %+v", have, low, m.s.Snapshot())
			}
			if err := m.g.Write(int64(n)*PageSize, content(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	short(40)
	if moved := m.s.balanceSpaces(); moved < 40 || fat.Resident() != 200-moved || lean.Resident() != 100 {
		t.Fatalf("%d moved; %d and %d are left: the one above its maximum should give all", moved, fat.Resident(), lean.Resident())
	}
	fat.SetBounds(WorkingSetBounds{Min: 10, Max: 300})
	m.out()
	a, b, c := fat.Resident(), lean.Resident(), firm.Resident()
	if _, err := m.s.FlushModified(); err != nil {
		t.Fatal(err)
	}
	m.s.EmptyStandby()
	short(38)
	moved := m.s.balanceSpaces()
	gaveA, gaveB, gaveC := a-fat.Resident(), b-lean.Resident(), c-firm.Resident()
	if moved < 38 || gaveA <= gaveB || gaveB <= gaveC || gaveC > 10 {
		t.Errorf("%d moved: %d of %d, %d of %d, %d of %d with 10 above its minimum", moved, gaveA, a, gaveB, b, gaveC, c)
	}
	for range 20 {
		m.g.Punch(0, 1000)
		if _, err := m.s.FlushModified(); err != nil {
			t.Fatal(err)
		}
		m.s.EmptyStandby()
		short(60)
		m.s.balanceSpaces()
	}
	if firm.Resident() < 90 {
		t.Errorf("%d pages are left of a hard minimum of 90", firm.Resident())
	}
	if fat.Resident() > 10 && lean.Resident() > 10 {
		t.Errorf("%d and %d pages are left in distress", fat.Resident(), lean.Resident())
	}
	m.check()
	for _, p := range []*Space{fat, lean, firm} {
		p.Delete()
	}
	m.close()
}

// TestAgeing: of a working set that must give, pages that are in use stay.
func TestAgeing(t *testing.T) {
	m := newPagedMachine(t, Config{}, 400, [2]uint64{4000, 0})
	p := m.s.NewSpace()
	if err := p.Commit(0, 199); err != nil {
		t.Fatal(err)
	}
	for n := range uint64(200) {
		if err := p.Write(n<<PageShift, content(n)); err != nil {
			t.Fatal(err)
		}
	}
	p.trimSome(1) // from now on they are known not to be in use
	var b [1]byte
	for n := uint64(0); n < 200; n += 4 {
		if err := p.Read(n<<PageShift, b[:]); err != nil {
			t.Fatal(err)
		}
	}
	if moved := p.trimSome(140); moved != 140 {
		t.Fatalf("%d moved, want 140", moved)
	}
	for n := uint64(0); n < 200; n += 4 {
		if p.Page(n).State != StateActive {
			t.Errorf("page %d, which was in use, has left: %c", n, p.Page(n).State)
		}
	}
	m.check()
	p.Delete()
	m.close()
}

// TestOfferRange: of a range that is offered, those pages are lost or reclaimed that lie in it, and no other; what was written
// since it was lost is neither.
func TestOfferRange(t *testing.T) {
	m := newPagedMachine(t, Config{}, 128, [2]uint64{1000, 0})
	for n := range uint64(80) {
		mustDo(t, m.g.Write(int64(n)*PageSize, content(n)))
	}
	if n, err := m.g.Offer(10, 69, 0); err != nil || n != 60 {
		t.Fatalf("%d pages offered, %v", n, err)
	}
	m.check()
	if o := m.g.Reclaim(60, 79); o != (Offered{Reclaimed: 10}) {
		t.Errorf("the end of it: %+v", o)
	}
	m.s.EmptyStandby0()
	m.check()
	m.g.Each(0, 80, func(p PageInfo) bool {
		if lost := p.Index >= 10 && p.Index < 60; lost != (p.State == StateCommitted) || lost != (p.Why == "Lost") {
			t.Errorf("%+v", p)
		}
		return true
	})
	mustDo(t, m.g.Write(20*PageSize, content(1)))
	m.g.Punch(30, 31)
	if o := m.g.Reclaim(0, 39); o != (Offered{Lost: 27}) {
		t.Errorf("the beginning: %+v", o)
	}
	if o := m.g.Reclaim(0, MaxSize>>PageShift); o != (Offered{Lost: 20}) {
		t.Errorf("the rest: %+v", o)
	}
	for n := range uint64(80) {
		want := content(n)
		switch {
		case n == 20:
			want = content(1)
		case n >= 10 && n < 60:
			want = make([]byte, PageSize)
		}
		if !bytes.Equal(readPage(t, m.g, n), want) {
			t.Errorf("page %d holds something else", n)
		}
	}
	m.close()
}
