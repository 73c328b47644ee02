package mm

import (
	"bytes"
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
)

// kernel is a page cache over one segment with the rules that matter here: a page that is not there is read under its lock,
// an invalidation takes that lock, sends what is dirty and drops the page, a write that covers a page reads nothing, and a
// page that is being written back can be stored into.
type kernel struct {
	seg *Segment

	mu sync.Mutex
	// +checklocks:mu
	pages map[uint64]*folio
}

type folio struct {
	mu       sync.Mutex // the lock of the page
	sending  sync.Mutex // held while it is under write-back, taken with mu held
	uptodate bool
	dirty    bool
	gone     bool
	bytes    [PageSize]byte
}

// lock finds or makes a page and locks it.
//
// +checklocksignore
func (k *kernel) lock(page uint64) *folio {
	for {
		k.mu.Lock()
		f := k.pages[page]
		if f == nil {
			f = new(folio)
			k.pages[page] = f
		}
		k.mu.Unlock()
		f.mu.Lock()
		if !f.gone {
			return f
		}
		f.mu.Unlock()
	}
}

// touch is an access of a program through a mapping.
//
// +checklocksignore
func (k *kernel) touch(t *testing.T, page uint64, write bool, do func(b []byte)) {
	f := k.lock(page)
	defer f.mu.Unlock()
	if !f.uptodate {
		set, err := k.seg.Read(int64(page)<<PageShift, PageSize, make([]byte, PageSize))
		if err != nil {
			t.Error(err)
			return
		}
		b := f.bytes[:0]
		for _, s := range set.Slices() {
			b = append(b, s...)
		}
		set.Done()
		f.uptodate = true
	}
	do(f.bytes[:])
	f.dirty = f.dirty || write
}

// replace is a write(2) of a whole page.
//
// +checklocksignore
func (k *kernel) replace(page uint64, b []byte) {
	f := k.lock(page)
	copy(f.bytes[:], b)
	f.uptodate, f.dirty = true, true
	f.mu.Unlock()
}

func (k *kernel) cached(off, n int64) (pages []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p := range k.pages {
		if at := int64(p) << PageShift; n < 0 || at < off+n && at+PageSize > off {
			pages = append(pages, p)
		}
	}
	return pages
}

// +checklocksignore
func (k *kernel) WriteBack(off, n int64) error {
	for _, p := range k.cached(off, n) {
		f := k.lock(p)
		if !f.dirty {
			f.mu.Unlock()
			continue
		}
		f.sending.Lock()
		b := f.bytes
		f.dirty = false
		f.mu.Unlock()
		err := k.seg.Write(int64(p)<<PageShift, b[:])
		f.sending.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// +checklocksignore
func (k *kernel) Invalidate(off, n int64) error {
	for _, p := range k.cached(off, n) {
		f := k.lock(p)
		f.sending.Lock()
		var err error
		if f.dirty {
			err = k.seg.Write(int64(p)<<PageShift, f.bytes[:])
		}
		k.drop(p, f)
		f.sending.Unlock()
		f.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// drop takes a locked page out.
func (k *kernel) drop(page uint64, f *folio) {
	f.gone = true
	k.mu.Lock()
	delete(k.pages, page)
	k.mu.Unlock()
}

func (k *kernel) Written() bool { return true }

// simStore stores as a view of a simulated process does, whose working set the page leaves at once.
func simStore(g *Segment, off int64, data []byte) error {
	page := uint64(off) >> PageShift
	return g.Edit(page, page, func() error {
		err := g.writeView(off, data, true)
		simTrim(g, page)
		return err
	})
}

func simTrim(g *Segment, page uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if id := g.leafAt(page >> viewShift); id != 0 {
		g.sys.pfn.Lock()
		l := g.sys.rec.leaves.At(id)
		g.sys.trimPages(l, 1<<(page%ViewPages)&^l.host)
		g.sys.pfn.Unlock()
	}
}

// simLoad loads as a view does.
func simLoad(g *Segment, off int64, buf []byte) error {
	if err := g.Fetch(off, int64(len(buf))); err != nil {
		return err
	}
	set, err := g.read(off, len(buf), nil, false, false)
	if err != nil {
		return err
	}
	for _, s := range set.Slices() {
		buf = buf[copy(buf, s):]
	}
	set.Done()
	simTrim(g, uint64(off)>>PageShift)
	return nil
}

// TestCoherence has programs and simulated processes store into the same pages at once, each its own words, while pages
// are written back and trimmed. No store is lost on either side, and what has been stored is seen by the other side at
// once.
func TestCoherence(t *testing.T) {
	const pages, each, rounds = 2, 3, 1500
	s := newTestSystem(t, 64)
	k := &kernel{pages: make(map[uint64]*folio)}
	g := s.NewSegment(k)
	k.seg = g
	if err := g.Commit(0, pages-1); err != nil {
		t.Fatal(err)
	}
	s.Start()
	var stop atomic.Bool
	var helpers, workers sync.WaitGroup
	for _, f := range []func() error{
		func() error { return k.WriteBack(0, -1) },
		func() error { _, err := s.TrimAll(); return err },
	} {
		helpers.Go(func() {
			for !stop.Load() {
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	// published is what each worker has stored for sure: program i and simulated process i count in words of their own.
	var published [pages][2][each]atomic.Uint64
	at := func(side, i int) int { return side*PageSize/2 + i*8 }
	look := func(page uint64, side, i int, read func() uint64) {
		want := published[page][side][i].Load()
		if got := read(); got < want {
			t.Errorf("page %d: word %d of side %d reads %d after %d was stored", page, i, side, got, want)
			stop.Store(true)
		}
	}
	for page := range uint64(pages) {
		for i := range each {
			workers.Go(func() {
				for n := uint64(1); n <= rounds && !stop.Load(); n++ {
					k.touch(t, page, true, func(b []byte) {
						word := b[at(0, i):]
						if got := binary.LittleEndian.Uint64(word); got != n-1 {
							t.Errorf("page %d: program %d finds %d, had stored %d", page, i, got, n-1)
							stop.Store(true)
						}
						binary.LittleEndian.PutUint64(word, n)
					})
					published[page][0][i].Store(n)
					look(page, 1, i, func() (v uint64) {
						k.touch(t, page, false, func(b []byte) { v = binary.LittleEndian.Uint64(b[at(1, i):]) })
						return v
					})
				}
			})
			workers.Go(func() {
				var word [8]byte
				for n := uint64(1); n <= rounds && !stop.Load(); n++ {
					binary.LittleEndian.PutUint64(word[:], n)
					if err := simStore(g, int64(page)<<PageShift+int64(at(1, i)), word[:]); err != nil {
						t.Error(err)
					}
					published[page][1][i].Store(n)
					look(page, 0, i, func() uint64 {
						if err := simLoad(g, int64(page)<<PageShift+int64(at(0, i)), word[:]); err != nil {
							t.Error(err)
						}
						return binary.LittleEndian.Uint64(word[:])
					})
				}
			})
		}
	}
	workers.Wait()
	stop.Store(true)
	helpers.Wait()
	for page := range uint64(pages) {
		for i := range each {
			for side := range 2 {
				k.touch(t, page, false, func(b []byte) {
					if got := binary.LittleEndian.Uint64(b[at(side, i):]); got != rounds {
						t.Errorf("page %d: word %d of side %d is %d at the end", page, i, side, got)
					}
				})
			}
		}
	}
	endCoherence(t, s, g)
}

func endCoherence(t *testing.T, s *System, g *Segment) {
	t.Helper()
	for _, err := range s.Check() {
		t.Error(err)
	}
	g.mu.Lock()
	if h := g.sharing(); len(h.edits)+len(h.expelling) > 0 {
		t.Errorf("%d edits and %d expulsions are left", len(h.edits), len(h.expelling))
	}
	g.mu.Unlock()
	g.Delete()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestCoherenceOfWholePages has programs write whole pages, which asks us for nothing, against stores into them. Whoever
// comes last, the host and we agree in the end.
func TestCoherenceOfWholePages(t *testing.T) {
	s := newTestSystem(t, 64)
	k := &kernel{pages: make(map[uint64]*folio)}
	g := s.NewSegment(k)
	k.seg = g
	if err := g.Commit(0, 0); err != nil {
		t.Fatal(err)
	}
	for round := range 2000 {
		whole := bytes.Repeat([]byte{byte(round)}, PageSize)
		edit := []byte{^byte(round)}
		var both sync.WaitGroup
		both.Go(func() {
			k.replace(0, whole)
			if round%2 == 0 {
				_ = k.WriteBack(0, -1)
			}
		})
		both.Go(func() {
			if err := simStore(g, 100, edit); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		var seen [PageSize]byte
		k.touch(t, 0, false, func(b []byte) { copy(seen[:], b) })
		got := make([]byte, PageSize)
		if err := simLoad(g, 0, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, seen[:]) {
			t.Fatalf("round %d: a program reads %x…, a process %x…", round, seen[96:104], got[96:104])
		}
		if got[99] != byte(round) || got[100] != whole[0] && got[100] != edit[0] {
			t.Fatalf("round %d: the page reads %x… after %x and an edit to %x", round, got[96:104], whole[0], edit)
		}
	}
	endCoherence(t, s, g)
}

// TestEditFails: a store whose pages cannot be had, or that the host refuses to give up, is an error and leaves nothing
// behind.
func TestEditFails(t *testing.T) {
	s := newTestSystem(t, 64)
	h := &stubborn{}
	g := s.NewSegment(h)
	if err := g.Write(0, make([]byte, PageSize)); err != nil {
		t.Fatal(err)
	}
	h.err = StatusBusy
	ran := false
	if err := g.Edit(0, 0, func() error { ran = true; return nil }); err != StatusBusy || ran {
		t.Errorf("a store into a page that the host keeps: %v, applied: %v", err, ran)
	}
	if err := g.Fetch(0, 1); err != StatusBusy {
		t.Errorf("a fetch of it: %v", err)
	}
	h.err = nil
	if err := g.Edit(0, 0, func() error { ran = true; return StatusInPageError }); err != StatusInPageError || !ran {
		t.Errorf("a store that fails: %v", err)
	}
	endCoherence(t, s, g)
}

// stubborn is a host whose invalidations can fail.
type stubborn struct{ err error }

func (h *stubborn) WriteBack(off, n int64) error  { return h.err }
func (h *stubborn) Invalidate(off, n int64) error { return h.err }
func (h *stubborn) Written() bool                 { return true }

// TestReadAppliesEdit: a READ that comes in the middle of an invalidation applies the store that waits for it, and is
// answered with it. One that goes past the host's cache is not, and the store invalidates again.
func TestReadAppliesEdit(t *testing.T) {
	for _, c := range []struct {
		name          string
		read          func(*Segment, int64, int, []byte) (*ReadSet, error)
		seen          byte
		invalidations int
	}{
		{"cached", (*Segment).Read, 1, 1},
		{"O_DIRECT", (*Segment).ReadPast, 0, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestSystem(t, 64)
			h := &greedy{read: c.read}
			g := s.NewSegment(h)
			h.seg = g
			if err := g.Write(0, make([]byte, PageSize)); err != nil {
				t.Fatal(err)
			}
			if err := simStore(g, 7, []byte{1}); err != nil {
				t.Fatal(err)
			}
			if h.seen != c.seen || h.invalidations != c.invalidations {
				t.Errorf("the READ saw %d; there were %d invalidations; want %d, %d", h.seen, h.invalidations, c.seen, c.invalidations)
			}
			if b := g.sys.pfn.Bytes(g.pteOf(0).frame()); b[7] != 1 {
				t.Error("the store was lost")
			}
			endCoherence(t, s, g)
		})
	}
}

// greedy is a host that asks for the page once more when it has dropped it first.
type greedy struct {
	seg           *Segment
	read          func(*Segment, int64, int, []byte) (*ReadSet, error)
	seen          byte
	invalidations int
}

func (h *greedy) WriteBack(off, n int64) error { return nil }
func (h *greedy) Written() bool                { return true }

func (h *greedy) Invalidate(off, n int64) error {
	if h.invalidations++; h.invalidations > 1 {
		return nil
	}
	set, err := h.read(h.seg, 0, PageSize, make([]byte, PageSize))
	if err != nil {
		return err
	}
	h.seen = set.Slices()[0][7]
	set.Done()
	return nil
}
