package mm

import (
	"sync"
	"sync/atomic"
)

// Segment is the array of prototype PTEs of one section, sparse: a hole costs nothing. Its pages are those of a regular
// file; how long the file is, is the section's business.
type Segment struct {
	sys  *System
	id   uint32
	host Host // nil of private memory, and of what no real program can see

	space    *Space // whose private memory it is; nil of a file
	combined bool   // the one of combined pages
	private  bool   // a process's private memory: valid is in its working set, and only what is committed can be touched

	faults segmentFaults

	unmapping atomic.Int32 // trims that have the host write back just now: such WRITEs are not delayed

	mu sync.Mutex
	// +checklocks:mu
	root uint32 // branch or leaf
	// +checklocks:mu
	height uint8
	// +checklocks:mu
	deleted bool
	// +checklocks:mu
	limited bool // its leaves are marked as of a file with a working-set limit
	// +checklocks:mu
	launder uint8 // trims that still have the host write back first
	// +checklocks:mu
	leaves uint64
	// +checklocks:mu
	pages uint64 // committed
	// +checklocks:mu
	io []*pageIO
	// +checklocks:mu
	ahead readAhead
	// +checklocks:mu
	rule Rule
	// +checklocks:mu
	shared *sharing // with simulated processes; nil = not yet
}

// segmentFaults counts the faults on one segment's pages.
type segmentFaults struct{ demandZero, soft, hard atomic.Uint64 }

// FaultCounts are the faults on the pages of one file: first stores; pages that had left the working set and came back from
// a list; and those that had left memory and were read back, Linux's refaults.
type FaultCounts struct{ DemandZero, Soft, Hard uint64 }

// Faults is how often the segment's pages faulted.
func (g *Segment) Faults() FaultCounts {
	return FaultCounts{g.faults.demandZero.Load(), g.faults.soft.Load(), g.faults.hard.Load()}
}

// pageIO is store I/O under way on consecutive pages, marked inIO. Whoever needs one of them waits for done with no lock
// held, and looks again.
type pageIO struct {
	first, last uint64
	done        chan struct{}
}

// NewSegment makes an empty segment of a file that the host reaches through host.
func (s *System) NewSegment(host Host) *Segment {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	for {
		s.lastSeg++
		if _, taken := s.segs[s.lastSeg]; s.lastSeg != 0 && !taken {
			break
		}
	}
	g := &Segment{sys: s, id: s.lastSeg, host: host, rule: DefaultRule()}
	s.segs[g.id] = g
	return g
}

func (s *System) segment(id uint32) *Segment {
	s.segMu.Lock()
	defer s.segMu.Unlock()
	return s.segs[id]
}

// beginIO records I/O on the pages first..last. Preconditions: they are being marked inIO.
// +checklocks:g.mu
func (g *Segment) beginIO(first, last uint64) *pageIO {
	r := &pageIO{first: first, last: last, done: make(chan struct{})}
	g.io = append(g.io, r)
	return r
}

// +checklocks:g.mu
func (g *Segment) endIO(r *pageIO) {
	for i, o := range g.io {
		if o == r {
			g.io[i] = g.io[len(g.io)-1]
			g.io[len(g.io)-1] = nil
			g.io = g.io[:len(g.io)-1]
			break
		}
	}
	close(r.done)
}

// ioOn finds the record of the I/O on a page marked inIO.
// +checklocks:g.mu
func (g *Segment) ioOn(page uint64) *pageIO {
	for _, r := range g.io {
		if r.first <= page && page <= r.last {
			return r
		}
	}
	panic("mm: page marked inIO without a record")
}

// Pages is the number of committed pages.
func (g *Segment) Pages() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.pages
}

// Punch makes pages first..last (inclusive) holes again: frames, slots and commit go back at once. The host has dropped
// its copies, or is about to.
func (g *Segment) Punch(first, last uint64) {
	for {
		g.mu.Lock()
		key, id := g.nextLeaf(first >> viewShift)
		if id == 0 || key > last>>viewShift {
			g.mu.Unlock()
			return
		}
		lo, hi := within(key, first, last)
		wait, mapped := g.punchLeaf(id, lo, hi)
		if wait == nil && !mapped {
			g.dropLeafIfEmpty(key)
			first = (key + 1) << viewShift
		}
		g.mu.Unlock()
		switch {
		case wait != nil:
			<-wait.done
		case mapped:
			g.shootDown(max(first, key<<viewShift), min(last, key<<viewShift+ViewPages-1))
		case first > last:
			return
		}
	}
}

// within says which pages of the view for key are among first..last, by their places in the view.
func within(key, first, last uint64) (lo, hi uint) {
	lo, hi = 0, ViewPages-1
	if key == first>>viewShift {
		lo = uint(first % ViewPages)
	}
	if key == last>>viewShift {
		hi = uint(last % ViewPages)
	}
	return lo, hi
}

// punchLeaf makes pages lo..hi of a leaf holes, or returns the I/O that must end first, or that processes map one of them.
// +checklocks:g.mu
func (g *Segment) punchLeaf(id uint32, lo, hi uint) (wait *pageIO, mapped bool) {
	s := g.sys
	l := s.rec.leaves.At(id)
	var uncommitted, frames uint64
	s.pfn.Lock()
	words := s.rec.slice(l)
	for i := lo; i <= hi && i < uint(len(words)); i++ {
		switch w := words[i]; {
		case w.kind() == kindInIO:
			s.pfn.Unlock()
			return g.ioOn(l.base + uint64(i)), false
		case w.kind() == kindValid && s.pfn.Shares(w.frame()) > 0:
			s.pfn.Unlock()
			return nil, true
		}
	}
	if g.private {
		s.unlockPages(l, pageMask(lo, hi))
		l.setReset(l.reset() &^ pageMask(lo, hi))
	}
	for i := lo; i <= hi && i < uint(len(words)); i++ {
		w := words[i]
		switch {
		case w.kind() == kindShared:
			if s.unshare(l, i); s.rec.word(l, i).kind() == kindCombined {
				s.dropCombined(s.rec.word(l, i).number())
			}
		case w.hasFrame():
			s.freeLocation(location(s.pfn.Release(w.frame())))
			frames++
		case w.kind() == kindPaged:
			s.freeLocation(w.location())
		case w.kind() == kindCombined:
			s.dropCombined(w.number())
		}
		if w.isCommitted() && !g.combined {
			uncommitted++
		}
		s.rec.set(l, i, 0)
	}
	s.unmapHost(id, l, pageMask(lo, hi))
	s.commit.uncharge(uncommitted, true)
	s.pfn.Unlock()
	g.removePages(uncommitted)
	s.n.pagesFreed.Add(frames)
	return nil, false
}

// Delete ends the segment: everything it holds goes back at once, and later calls fail with StatusDeleted.
func (g *Segment) Delete() {
	g.mu.Lock()
	g.deleted = true
	g.mu.Unlock()
	g.Punch(0, MaxSize>>PageShift)
	g.sys.pfn.Lock()
	delete(g.sys.rec.limits, g.id)
	g.sys.pfn.Unlock()
	g.retire()
}

// retire takes a deleted segment off the table when its last leaf is gone. The trimmer may hold a leaf a little longer;
// then it retires the segment.
func (g *Segment) retire() {
	g.mu.Lock()
	gone := g.deleted && g.leaves == 0
	g.mu.Unlock()
	if gone {
		g.sys.segMu.Lock()
		delete(g.sys.segs, g.id)
		g.sys.segMu.Unlock()
	}
}

// Sized is a Host of a file whose size programs may change at any time. Size waits for nothing.
type Sized interface{ Size() int64 }

// inside says whether a page is one of the file's. With the segment's lock held it stays so for as long: pages are cut off
// (Punch) after the size has changed.
func (g *Segment) inside(page uint64) bool {
	f, ok := g.host.(Sized)
	return !ok || int64(page) < (f.Size()+PageSize-1)>>PageShift
}

// Commit promises space for pages first..last (inclusive), as fallocate does; what is there stays.
func (g *Segment) Commit(first, last uint64) error { return g.promise(first, last, false) }

// commitInside is Commit for a process: StatusInPageError beyond the end of the file.
func (g *Segment) commitInside(first, last uint64) error { return g.promise(first, last, true) }

func (g *Segment) promise(first, last uint64, inside bool) error {
	n, err := g.uncommitted(first, last)
	if err != nil {
		return err
	}
	if err := g.admit(n); err != nil {
		return err
	}
	budget := n
	if err := g.sys.commit.charge(budget); err != nil {
		return err
	}
	defer func() { g.sys.commit.uncharge(budget, false) }()
	for key := first >> viewShift; key <= last>>viewShift; key++ {
		lo, hi := within(key, first, last)
		if err := g.commitView(key, lo, hi, &budget, inside); err != nil {
			return err
		}
	}
	return nil
}

func (g *Segment) commitView(key uint64, lo, hi uint, budget *uint64, inside bool) error {
	return g.growing(func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.deleted {
			return StatusDeleted
		}
		if inside && !g.inside(key<<viewShift+uint64(hi)) {
			return StatusInPageError
		}
		id, err := g.makeLeaf(key, hi+1)
		if err != nil {
			return err
		}
		s := g.sys
		s.pfn.Lock()
		defer s.pfn.Unlock()
		l := s.rec.leaves.At(id)
		var need uint64
		for i := lo; i <= hi; i++ {
			if !s.rec.word(l, i).isCommitted() {
				need++
			}
		}
		if err := s.topUp(need, budget); err != nil {
			return err
		}
		for i := lo; i <= hi; i++ {
			switch w := s.rec.word(l, i); {
			case w.isCommitted():
			case w.kind() == kindShared: // and goes on showing the file's page
				s.rec.set(l, i, w|committed)
			default:
				s.rec.set(l, i, committed)
			}
		}
		s.spend(need, budget)
		g.addPages(need)
		return nil
	})
}

// growing runs f until it no longer asks for a page file to grow.
func (g *Segment) growing(f func() error) error {
	for {
		err := f()
		if err != errGrow {
			return err
		}
		if err := g.sys.commit.grow(ViewPages); err != nil {
			return err
		}
	}
}

// topUp makes sure that budget, pages charged beforehand, covers need.
func (s *System) topUp(need uint64, budget *uint64) error {
	if need <= *budget {
		return nil
	}
	if err := s.commit.tryCharge(need - *budget); err != nil {
		return err
	}
	*budget = need
	return nil
}

// spend attaches n pages of budget to words.
func (s *System) spend(n uint64, budget *uint64) {
	if n == 0 {
		return
	}
	s.commit.attach(n)
	*budget -= n
}

// unspend takes n pages back from words into budget.
func (s *System) unspend(n uint64, budget *uint64) {
	if n == 0 {
		return
	}
	s.commit.detach(n)
	*budget += n
}

// uncommitted counts the pages first..last that are not committed.
func (g *Segment) uncommitted(first, last uint64) (uint64, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deleted {
		return 0, StatusDeleted
	}
	n := last - first + 1
	s := g.sys
	for key := first >> viewShift; key <= last>>viewShift; key++ {
		var id uint32
		if key, id = g.nextLeaf(key); id == 0 || key > last>>viewShift {
			break
		}
		lo, hi := within(key, first, last)
		s.pfn.Lock()
		words := s.rec.slice(s.rec.leaves.At(id))
		for i := lo; i <= hi && i < uint(len(words)); i++ {
			if words[i].isCommitted() {
				n--
			}
		}
		s.pfn.Unlock()
	}
	return n, nil
}

// SeekData returns the first page at or after page that was written; ok is false if there is none.
func (g *Segment) SeekData(page uint64) (at uint64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sys
	for key, id := g.nextLeaf(page >> viewShift); id != 0; key, id = g.nextLeaf(key + 1) {
		s.pfn.Lock()
		l := s.rec.leaves.At(id)
		for i, w := range s.rec.slice(l) {
			if p := l.base + uint64(i); p >= page && w.kind() != kindZero {
				s.pfn.Unlock()
				return p, true
			}
		}
		s.pfn.Unlock()
	}
	return 0, false
}

// SeekHole returns the first page at or after page that was never written.
func (g *Segment) SeekHole(page uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sys
	for {
		id := g.leafAt(page >> viewShift)
		if id == 0 {
			return page
		}
		s.pfn.Lock()
		l := s.rec.leaves.At(id)
		for page>>viewShift == l.base>>viewShift {
			if s.rec.word(l, uint(page%ViewPages)).kind() == kindZero {
				s.pfn.Unlock()
				return page
			}
			page++
		}
		s.pfn.Unlock()
	}
}

// Each calls f for the pages in [first, first+n) that are not plain holes unknown to the host, in order, until f returns
// false. f is called with no lock held; pages of one view are seen at one moment.
func (g *Segment) Each(first, n uint64, f func(PageInfo) bool) {
	if n == 0 {
		return
	}
	last := first + n - 1
	if last < first {
		last = ^uint64(0)
	}
	for key := first >> viewShift; ; {
		var infos []PageInfo
		g.mu.Lock()
		k, id := g.nextLeaf(key)
		if id != 0 && k <= last>>viewShift {
			infos = g.sys.leafInfo(id)
		}
		g.mu.Unlock()
		if infos == nil {
			return
		}
		for _, p := range infos {
			if p.Index >= first && p.Index <= last && !f(p) {
				return
			}
		}
		key = k + 1
	}
}

// leafInfo copies what is known of the pages of a leaf.
func (s *System) leafInfo(id uint32) []PageInfo {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	l := s.rec.leaves.At(id)
	infos := make([]PageInfo, 0, ViewPages)
	for i := uint(0); i < ViewPages; i++ {
		w := s.rec.word(l, i)
		host := l.host>>i&1 != 0
		if w == 0 && !host {
			continue
		}
		info := s.pageInfo(l.base+uint64(i), w, host)
		if l.flags&leafPrivate != 0 {
			info.Host, info.Locked = false, host
			if w.kind() == kindCombined && info.State == StateActive { // in others' working sets, and not in this one
				info.State = StateStandby
				if info.Dirty {
					info.State = StateModified
				}
			}
		}
		infos = append(infos, info)
	}
	return infos
}

// pageInfo describes a page with PTE w. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) pageInfo(index uint64, w pte, host bool) PageInfo {
	p := PageInfo{Index: index, State: StateZero, Frame: -1, PageFile: -1, Slot: -1, Host: host}
	if c := s.plain(w); c.kind() == kindCombined { // where its bytes are is known there
		p = s.pageInfo(index, s.combinedWord(c.number()), host)
		p.Sharers = s.combined.pages[c.number()].refs
		return p
	}
	at := w.location()
	if w.kind() == kindShared { // the page is the file's: what is known of it is known there
		o := w.owner()
		l := s.rec.leaves.At(o.leaf())
		p = s.pageInfo(index, s.rec.word(l, o.index()), false)
		p.Shared, p.Promised = true, w.isCommitted()
		return p
	}
	switch w.kind() {
	case kindZero:
		at = 0
		if w.isCommitted() {
			p.State = StateCommitted
		}
		if w&lost != 0 {
			p.Why = "Lost"
		}
	case kindPaged:
		p.State, p.Why = StatePaged, w.departure().String()
		if s.isCompressed(at) {
			p.State = StateCompressed
		}
	case kindInIO:
		p.State = StateTransition
	default:
		i := s.pfn.Info(w.frame())
		p.Frame, p.Priority, p.Dirty, p.Shares = int64(w.frame()), i.Priority, i.Dirty, i.Shares
		p.State, p.Why = stateLetter(i.State), i.Why.String()
		at = location(i.Original)
	}
	if at != 0 {
		p.PageFile, p.Slot = at.file(), int64(at.slot())
	}
	return p
}
