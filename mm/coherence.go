package mm

import (
	"math/bits"
	"slices"
	"time"
)

// Coherence between simulated processes, who load and store in our copy of a page, and real programs, whose mappings show
// the host kernel's copy.
//
// A load first fetches: pages that programs may have written are invalidated in the host, which has it send what is dirty.
// That is done for every load of a file that is open for writing, because neither a page that was mapped writable nor a
// write(2) that covers a whole page tells us when the host's copy becomes dirty (again).
//
// A store is an edit: it must be applied to our copy when the host has none, for else the host's, sent back later with
// another program's bytes changed, would undo it; and it must be seen by whoever asks for the page next. So it is queued,
// the pages are invalidated, and it is applied by whichever comes first:
//
//	a page-cache READ of its page    it proves that the host has no copy; its handler applies the edit, then answers
//	the end of the invalidation      unless the host has sent or asked for the page meanwhile: then once more
//
// A WRITE that arrives in between is what programs stored before; the edit goes on top of it. READs wait for an edit that
// is being applied, which waits for store I/O only, and for nothing else. No lock is held across the invalidation.

// sharing is what a segment that simulated processes use has under way. Segment.mu guards it.
type sharing struct {
	views     []*View // of processes
	edits     []*edit
	expelling []*expulsion
}

// sharing is the segment's, made if need be.
// +checklocks:g.mu
func (g *Segment) sharing() *sharing {
	if g.shared == nil {
		g.shared = new(sharing)
	}
	return g.shared
}

// edit is a store of a simulated process under way.
type edit struct {
	first, last uint64 // pages
	apply       func() error
	state       editState // Segment.mu
	done        chan struct{}
	err         error // of apply; for whoever has waited for done, as again
	again       bool  // the host may have got a copy while it was applied
}

type editState uint8

const (
	editQueued  editState = iota // the host may have a copy
	editRunning                  // the host has none, and READs wait
	editDone
)

// expulsion is an invalidation under way: the host may still have the pages whose bits it took.
type expulsion struct {
	first, last uint64
	views       []trimming
}

// Hosted says whether real programs may have copies of the segment's pages, so that Fetch and Edit may wait for the host.
func (g *Segment) Hosted() bool { return g.host != nil }

// Fetch makes the bytes [off, off+n) of our copy what programs see: what they have stored in mappings, or written, and the
// host has not sent. It waits for the host: no lock may be held, and no handler of a READ or WRITE of the same file may
// call it.
func (g *Segment) Fetch(off, n int64) error {
	if n <= 0 || g.host == nil || !g.host.Written() {
		return nil
	}
	if n > fetchPages*PageSize {
		_ = g.host.WriteBack(off, n) // the invalidation sends a page at a time
	}
	return g.expel(uint64(off)>>PageShift, uint64(off+n-1)>>PageShift)
}

// fetchPages is up to how many pages are fetched by the invalidation alone: the launderer costs as much as that many small
// WRITEs.
const fetchPages = 8

// Edit runs apply, which stores bytes into pages first..last of our copy, exactly once and in such a way that it is
// neither lost nor hidden by a copy that the host has. When Edit returns, every program sees it. apply waits for store
// I/O only, and may run in the handler of a READ. Its error is Edit's.
//
// A store into one page ends however busy its page is. One that crosses pages needs a moment at which the host has none of
// them, and may find that there is none: StatusBusy, and apply has not run.
//
// It waits for the host, as Fetch does.
func (g *Segment) Edit(first, last uint64, apply func() error) error {
	if g.host == nil {
		return apply()
	}
	written := g.host.Written()
	e := &edit{first: first, last: last, apply: apply, done: make(chan struct{})}
	g.mu.Lock()
	h := g.sharing()
	h.edits = append(h.edits, e)
	mine := !written && g.begin(e)
	g.mu.Unlock()
	for try := 1; !mine; try++ {
		if err := g.expel(first, last); err != nil && g.withdraw(e) {
			return err
		}
		g.mu.Lock()
		mine = g.begin(e)
		others := !mine && e.state != editQueued
		g.mu.Unlock()
		switch {
		case mine:
		case others: // a READ's
			<-e.done
			return g.stored(e)
		case try > storeTries && g.withdraw(e):
			return StatusBusy
		case try > 3:
			time.Sleep(min(time.Duration(try)*10*time.Microsecond, time.Millisecond))
		}
	}
	g.run(e, 1, 0)
	return g.stored(e)
}

// begin marks a queued edit running if the host has no copy of its pages, and says whether it did.
// +checklocks:g.mu
func (g *Segment) begin(e *edit) bool {
	if e.state != editQueued || g.held(e.first, e.last) {
		return false
	}
	e.state = editRunning
	return true
}

// stored is the outcome of an edit that has been applied. If a WRITE came by at the same time, a program has written a whole
// page, and the host shows it without the edit; or the WRITE has undone the edit, as if it had come after it. Either way
// host and segment agree once the page has left the host.
func (g *Segment) stored(e *edit) error {
	if !e.again {
		return e.err
	}
	if err := g.expel(e.first, e.last); e.err == nil {
		return err
	}
	return e.err
}

// storeTries is how often a store invalidates its pages before it gives up.
const storeTries = 5000

// run applies an edit that the caller has marked running. Of its pages, the host may get a copy meanwhile by a WRITE, but
// by no READ: those wait, but for the one of pages first..last that it is applied for.
func (g *Segment) run(e *edit, first, last uint64) {
	e.err = e.apply()
	g.mu.Lock()
	defer g.mu.Unlock()
	e.again = g.heldBeside(e, first, last)
	g.endEdit(e)
}

// heldBeside is held for the pages of an edit that are not among first..last.
// +checklocks:g.mu
func (g *Segment) heldBeside(e *edit, first, last uint64) bool {
	return e.first < first && g.held(e.first, min(e.last, first-1)) || e.last > last && g.held(max(e.first, last+1), e.last)
}

// withdraw ends an edit that nobody has begun to apply; false if somebody has.
func (g *Segment) withdraw(e *edit) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if e.state != editQueued {
		return false
	}
	g.endEdit(e)
	return true
}

// +checklocks:g.mu
func (g *Segment) endEdit(e *edit) {
	e.state = editDone
	i := slices.Index(g.shared.edits, e)
	g.shared.edits = slices.Delete(g.shared.edits, i, i+1)
	close(e.done)
}

// meet finds an edit that a page-cache READ of pages first..last has to do with: one to apply, marked running, or one to
// wait for. nil if there is none. The READ has not been answered, so that the host has no copy of these pages; an edit that
// reaches beyond them can be applied only if it has none of the others.
// +checklocks:g.mu
func (g *Segment) meet(first, last uint64) (e *edit, mine bool) {
	if g.shared == nil {
		return nil, false
	}
	for _, e := range g.shared.edits {
		if e.last < first || e.first > last {
			continue
		}
		if e.state == editRunning {
			return e, false
		}
		if g.heldBeside(e, first, last) {
			continue // its own turn comes: the host has this page again
		}
		e.state = editRunning
		return e, true
	}
	return nil, false
}

// held says whether the host may have a copy of one of the pages first..last, as far as READs and WRITEs tell.
// +checklocks:g.mu
func (g *Segment) held(first, last uint64) bool {
	s := g.sys
	for _, x := range g.sharing().expelling {
		if x.last < first || x.first > last {
			continue
		}
		for _, v := range x.views {
			if v.covers(first, last) {
				return true
			}
		}
	}
	for key, id := g.nextLeaf(first >> viewShift); id != 0 && key <= last>>viewShift; key, id = g.nextLeaf(key + 1) {
		s.pfn.Lock()
		l := s.rec.leaves.At(id)
		held := l.host&pageMask(within(key, first, last)) != 0 || l.flags&leafTrimming != 0
		s.pfn.Unlock()
		if held {
			return true
		}
	}
	return false
}

// covers says whether one of the pages first..last is among those of v's mask.
func (v *trimming) covers(first, last uint64) bool {
	if v.base > last || v.base+ViewPages-1 < first {
		return false
	}
	return v.mask&pageMask(within(v.base>>viewShift, first, last)) != 0
}

// expel invalidates the pages first..last in the host: what is dirty is sent before, and they leave the system cache's
// working set, unless the host asks for them or sends them meanwhile. It waits for the host.
func (g *Segment) expel(first, last uint64) error {
	s := g.sys
	x := &expulsion{first: first, last: last}
	g.mu.Lock()
	for key, id := g.nextLeaf(first >> viewShift); id != 0 && key <= last>>viewShift; key, id = g.nextLeaf(key + 1) {
		s.pfn.Lock()
		l := s.rec.leaves.At(id)
		if mask := l.host & pageMask(within(key, first, last)); mask != 0 {
			x.views = append(x.views, trimming{base: l.base, mask: mask})
			s.unmapHost(id, l, mask)
			s.cache.leaving += uint64(bits.OnesCount64(mask))
		}
		s.pfn.Unlock()
	}
	h := g.sharing()
	h.expelling = append(h.expelling, x)
	g.mu.Unlock()

	off, n := int64(first)<<PageShift, int64(last-first+1)<<PageShift
	g.unmapping.Add(1)
	err := g.host.Invalidate(off, n)
	g.unmapping.Add(-1)
	s.n.invalidations.Add(1)

	g.mu.Lock()
	i := slices.Index(h.expelling, x)
	h.expelling = slices.Delete(h.expelling, i, i+1)
	for _, v := range x.views {
		key := v.base >> viewShift
		id := g.leafAt(key)
		s.pfn.Lock()
		s.cache.leaving -= uint64(bits.OnesCount64(v.mask))
		if id != 0 {
			l := s.rec.leaves.At(id)
			if err != nil && !g.deleted {
				s.mapHost(id, l, v.mask) // the host may still have them
			}
			s.trimPages(l, v.mask&^l.host)
		}
		s.pfn.Unlock()
		if id != 0 {
			g.dropLeafIfEmpty(key)
		}
	}
	g.mu.Unlock()
	g.retire()
	return err
}
