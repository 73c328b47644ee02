package mm

import (
	"slices"

	"memfs/mm/pfn"
)

// View is a window of a process's memory onto consecutive pages of a file's segment. The process's page table says which of
// them are in its working set: a shared word leads to the file's prototype PTE, and the frame counts how many do. A page
// that no process and no view of the host's has left leaves as every page does: to Standby or Modified.
//
// Where the process may need copies of its own (WriteCopy), their space is committed in its memory beforehand (Space.Commit);
// a page that has been copied is the space's, and read and written there.
//
// All page numbers are the process's. The methods may be called at once from several goroutines and wait for store I/O only.
type View struct {
	space *Space
	seg   *Segment
	first uint64
	last  uint64
	page  uint64 // of the segment, that first shows
}

// Map makes a view of the pages first..last onto seg from page on. StatusDeleted: the segment is gone.
func (p *Space) Map(first, last uint64, seg *Segment, page uint64) (*View, error) {
	v := &View{space: p, seg: seg, first: first, last: last, page: page}
	seg.mu.Lock()
	defer seg.mu.Unlock()
	if seg.deleted {
		return nil, StatusDeleted
	}
	h := seg.sharing()
	h.views = append(h.views, v)
	return v, nil
}

// Unmap ends the view: its pages leave the working set, and what the process has copied or committed there goes back.
func (v *View) Unmap() {
	v.space.Decommit(v.first, v.last)
	v.seg.mu.Lock()
	defer v.seg.mu.Unlock()
	h := v.seg.sharing()
	if i := slices.Index(h.views, v); i >= 0 {
		h.views = slices.Delete(h.views, i, i+1)
	}
}

// Mapped says whether a process has a view of the segment.
func (g *Segment) Mapped() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shared != nil && len(g.shared.views) > 0
}

// shown is the page of the segment that a page of the view shows.
func (v *View) shown(page uint64) uint64 { return v.page + (page - v.first) }

// Read copies the bytes at virtual address addr into buf. StatusInPageError: a page's copy cannot be read.
func (v *View) Read(addr uint64, buf []byte) error { return v.seg.sys.load(addr, buf, v.see) }

// see is a fault that stores nothing.
func (v *View) see(first, last uint64) (*ReadSet, error) { return v.fault(first, last, false) }

// Touch brings pages into the working set, as reading a byte of each would.
func (v *View) Touch(first, last uint64) error { return v.seg.sys.touch(first, last, v.see) }

// Lock is Space.Lock of pages of the view.
func (v *View) Lock(first, last, most uint64) error {
	return v.space.lockRange(first, last, most, v.Touch)
}

// Write copies data to virtual address addr, for all to see. StatusCommitmentLimit: no space for a page that the file has
// not been promised. StatusInPageError, StatusOutPageError: a page could not be read or written.
func (v *View) Write(addr uint64, data []byte) error {
	for len(data) > 0 {
		n := v.seg.sys.chunk(addr, len(data))
		if err := v.store(addr, data[:n]); err != nil {
			return err
		}
		addr, data = addr+uint64(n), data[n:]
	}
	return nil
}

// store is Write within what one access holds pinned. Pages that found no frame are written as a WRITE writes them.
func (v *View) store(addr uint64, data []byte) error {
	s := v.seg.sys
	first, last := addr>>PageShift, (addr+uint64(len(data))-1)>>PageShift
	set, err := v.fault(first, last, true)
	if err != nil {
		return err
	}
	defer set.Done()
	for page := first; page <= last && err == nil; page++ {
		lo := 0
		if page == first {
			lo = int(addr % PageSize)
		}
		n := min(len(data), PageSize-lo)
		if set.frames[page-first] != 0 {
			copy(set.slices[page-first][lo:], data[:n])
		} else {
			err = v.storeDirect(v.shown(page), lo, data[:n])
		}
		data = data[n:]
	}
	s.pfn.Lock()
	defer s.pfn.Unlock()
	v.dirtied(set.frames, first) // after an error, too: some have been stored into
	return err
}

// dirtied notes that the pages from first on have been stored into, those that are in frames and have not been deleted
// meanwhile. The PFN lock is held, which keeps what the frames say.
// +checklocks:v.seg.sys.pfn.mu
func (v *View) dirtied(frames []pfn.Frame, first uint64) {
	s := v.seg.sys
	for i, f := range frames {
		if f != 0 && s.isAt(f, v.seg.id, v.shown(first+uint64(i))) {
			s.freeLocation(location(s.pfn.SetDirty(f)))
		}
	}
}

// isAt says whether a frame has a page of a segment.
// +checklocks:s.pfn.mu
func (s *System) isAt(f pfn.Frame, seg uint32, page uint64) bool {
	o := owner(s.pfn.Info(f).Owner)
	if o == 0 {
		return false
	}
	l := s.rec.leaves.At(o.leaf())
	return l.seg == seg && l.base+uint64(o.index()) == page
}

// storeDirect writes a page of the segment for which there was no frame a moment ago.
func (v *View) storeDirect(page uint64, lo int, data []byte) error {
	err := v.seg.writeView(int64(page<<PageShift)+int64(lo), data, true) // fault has seen to commit
	v.seg.settle(page, page)
	return err
}

// WriteCopy is Write to the process's own copies of the pages, which it makes: the segment keeps what it has. Nobody else
// may use the pages meanwhile. From then on they are the space's.
func (v *View) WriteCopy(addr uint64, data []byte) error {
	for len(data) > 0 {
		n := min(len(data), PageSize-int(addr%PageSize))
		if err := v.copyPage(addr>>PageShift, int(addr%PageSize), data[:n]); err != nil {
			return err
		}
		addr, data = addr+uint64(n), data[n:]
	}
	return nil
}

func (v *View) copyPage(page uint64, lo int, data []byte) error {
	set, err := v.fault(page, page, false)
	if err != nil {
		return err
	}
	b := alignedPage()
	copy(b, set.slices[0])
	set.Done()
	copy(b[lo:], data)
	p := v.space
	locked := p.leaveShared(page, page)
	p.relieve(1)
	if err := p.seg.writeView(int64(page<<PageShift), b, false); err != nil {
		return err
	}
	p.seg.sys.n.writeCopies.Add(1)
	if locked > 0 {
		_, err = p.lockPage(page, ^uint64(0), p.Touch)
	}
	return err
}

// Page describes the segment's page that a page of the view shows, whether or not it is in the working set.
func (v *View) Page(page uint64) PageInfo {
	info := PageInfo{State: StateZero, Frame: -1, PageFile: -1, Slot: -1}
	v.seg.Each(v.shown(page), 1, func(i PageInfo) bool { info = i; return false })
	info.Index, info.Shared = page, true
	return info
}

// Prefetch reads the segment's pages back onto Standby, as far as frames are free.
func (v *View) Prefetch(first, last uint64) error {
	_, err := v.seg.Prefetch(v.shown(first), v.shown(last))
	return err
}

// fault makes pages of the view, all in one view of the system cache's size, valid, enters them into the working set and
// pins them; those for which no frame is left are in buffers. With store the segment must have been promised space for them;
// without, pages for which there is none are zeros. StatusInPageError: a page lies beyond the end of the file.
func (v *View) fault(first, last uint64, store bool) (*ReadSet, error) {
	g, p := v.seg, v.space
	p.relieve(last - first + 1)
	lo, hi := v.shown(first), v.shown(last)
	n, err := g.uncommitted(lo, hi)
	if err == nil && n > 0 {
		err = g.commitInside(lo, hi)
	}
	if err != nil && (store || err != StatusCommitmentLimit) {
		return nil, err
	}
	r := reading{g: g, first: lo, last: hi, demand: true, set: g.newReadSet(hi - lo + 1)}
	if err = r.do(false); err == nil {
		err = v.enter(first, last, r.set.frames)
	}
	if err != nil {
		g.settle(lo, hi)
		r.set.Done()
		return nil, err
	}
	r.set.size = len(r.set.slices) * PageSize
	return r.set, nil
}

// enter has pinned pages of the segment enter the working set.
func (v *View) enter(first, last uint64, frames []pfn.Frame) error {
	g := v.space.seg
	return g.growing(func() error {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.deleted {
			return StatusDeleted
		}
		id, err := g.makeLeaf(first>>viewShift, uint(last%ViewPages)+1)
		if err != nil {
			return err
		}
		s := g.sys
		s.pfn.Lock()
		defer s.pfn.Unlock()
		l := s.rec.leaves.At(id)
		for page := first; page <= last; page++ {
			f := frames[page-first]
			if f == 0 || !s.isAt(f, v.seg.id, v.shown(page)) {
				continue // no frame, or deleted meanwhile
			}
			i := uint(page % ViewPages)
			if s.rec.word(l, i).kind() == kindZero {
				s.share(l, i, f)
			}
			s.rec.access(l, i)
		}
		return nil
	})
}

// share enters the page of a frame, a file's or a combined one, into the working set of a process, at page i of its leaf l.
// +checklocks:s.pfn.mu
func (s *System) share(l *leaf, i uint, f pfn.Frame) {
	o := owner(s.pfn.Info(f).Owner)
	if of := s.rec.leaves.At(o.leaf()); s.rec.word(of, o.index()).kind() == kindTransition { // it was trimmed since
		s.rec.set(of, o.index(), validPTE(f))
		s.pfn.MakeValid(f)
	}
	s.pfn.Share(f)
	s.rec.set(l, i, sharedPTE(o, s.rec.word(l, i).isCommitted()))
}

// unshare takes a file's page, or a combined one, out of a process's working set. If it was the last one that it was in, and
// the host has no view of it either, the page is trimmed. The PFN lock is held: it is called from closures that run under it,
// which the analyser cannot see.
//
// +checklocksignore
func (s *System) unshare(l *leaf, i uint) {
	w := s.rec.word(l, i)
	o := w.owner()
	if c := s.plain(w); c.kind() == kindCombined {
		s.rec.set(l, i, c)
	} else {
		s.rec.set(l, i, w&committed)
	}
	of := s.rec.leaves.At(o.leaf())
	f := s.rec.word(of, o.index()).frame()
	if s.pfn.Unshare(f) > 0 || of.host>>o.index()&1 != 0 {
		return
	}
	s.trimPages(of, 1<<o.index())
}

// frameOf is the frame of a page in a process's working set. The PFN lock is held: it is called from closures that run
// under it, which the analyser cannot see.
//
// +checklocksignore
func (s *System) frameOf(w pte) pfn.Frame {
	if w.kind() == kindShared {
		o := w.owner()
		w = s.rec.word(s.rec.leaves.At(o.leaf()), o.index())
	}
	return w.frame()
}

// Load copies the bytes at off into buf for somebody who does not keep the pages. It waits for store I/O only.
// StatusInPageError if a page's copy cannot be read.
func (g *Segment) Load(off int64, buf []byte) error {
	for len(buf) > 0 {
		n := g.sys.chunk(uint64(off), len(buf))
		set, err := g.read(off, n, nil, false, false)
		first, last := uint64(off)>>PageShift, uint64(off+int64(n)-1)>>PageShift
		if err != nil {
			g.settle(first, last)
			return err
		}
		b := buf[:n]
		for _, s := range set.slices {
			b = b[copy(b, s):]
		}
		g.settle(first, last)
		set.Done()
		off, buf = off+int64(n), buf[n:]
	}
	return nil
}

// Store is Write by somebody who does not keep the pages.
func (g *Segment) Store(off int64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	err := g.write(off, data, true)
	g.settle(uint64(off)>>PageShift, uint64(off+int64(len(data))-1)>>PageShift)
	return err
}

// settle takes pages that no view has, the host's or a process's, out of the working set: they were made valid for somebody
// who did not keep them.
func (g *Segment) settle(first, last uint64) {
	s := g.sys
	g.mu.Lock()
	defer g.mu.Unlock()
	for key := first >> viewShift; key <= last>>viewShift; key++ {
		if id := g.leafAt(key); id != 0 {
			s.pfn.Lock()
			l := s.rec.leaves.At(id)
			s.trimPages(l, pageMask(within(key, first, last))&^l.host)
			s.pfn.Unlock()
		}
	}
}

// leaveShared takes files' pages out of the working set, locked ones too, and says how many of those there were.
func (p *Space) leaveShared(first, last uint64) (locked uint64) {
	s := p.seg.sys
	p.seg.eachView(first, last, func(l *leaf, mask uint64) {
		for mask != 0 {
			i := lowestBit(&mask)
			if s.plain(s.rec.word(l, i)).kind() != kindShared {
				continue
			}
			if l.host>>i&1 != 0 {
				s.unlockPages(l, 1<<i)
				locked++
			}
			s.unshare(l, i)
		}
	})
	return locked
}

// shootDown takes pages of the segment out of all processes' working sets.
func (g *Segment) shootDown(first, last uint64) {
	g.mu.Lock()
	views := slices.Clone(g.sharing().views)
	g.mu.Unlock()
	for _, v := range views {
		end := v.shown(v.last)
		if v.page > last || end < first {
			continue
		}
		lo, hi := max(first, v.page), min(last, end)
		v.space.leaveShared(v.first+(lo-v.page), v.first+(hi-v.page))
	}
}

// CommittedRun says whether a page is committed, and which is the last page up to last that is the same.
func (g *Segment) CommittedRun(page, last uint64) (is bool, end uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	is = g.committedUpTo(page, page, true) > page
	for at := page; at <= last; {
		view := min(last, at|(ViewPages-1))
		if next := g.committedUpTo(at, view, is); next <= view {
			return is, next - 1
		}
		at = view + 1
		if k, id := g.nextLeaf(at >> viewShift); !is && (id == 0 || k > last>>viewShift) {
			return is, last // nothing is committed where there is no leaf
		} else if !is {
			at = max(at, k<<viewShift)
		}
	}
	return is, last
}

// committedUpTo returns the first of the pages first..last, all in one view, that is committed or not other than is; last+1
// if there is none.
// +checklocks:g.mu
func (g *Segment) committedUpTo(first, last uint64, is bool) uint64 {
	s := g.sys
	id := g.leafAt(first >> viewShift)
	if id == 0 && is {
		return first
	} else if id == 0 {
		return last + 1
	}
	s.pfn.Lock()
	defer s.pfn.Unlock()
	l := s.rec.leaves.At(id)
	for ; first <= last; first++ {
		if s.rec.word(l, uint(first%ViewPages)).isCommitted() != is {
			break
		}
	}
	return first
}

// checkShared sees that a shared word leads to a valid page of a file, or to a combined one, and counts it.
// +checklocks:s.pfn.mu
func (s *System) checkShared(c *checking, where pageName, l *leaf, w pte) {
	o := w.owner()
	if l.flags&leafPrivate == 0 {
		c.bad("%v: shared, but not a process's", where)
		return
	}
	of := s.rec.leaves.At(o.leaf())
	shown := s.rec.word(of, o.index())
	if of.seg == 0 || of.flags&leafPrivate != 0 || shown.kind() != kindValid {
		c.bad("%v: leads to leaf %d page %d, which is no valid page of a file", where, o.leaf(), o.index())
		return
	}
	if of.flags&leafCombined != 0 {
		s.checkSharer(c, where, of.base+uint64(o.index()))
	}
	c.shares[shown.frame()]++
}
