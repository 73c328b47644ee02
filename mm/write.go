package mm

import (
	"errors"
	"sync"
	"time"

	"memfs/mm/pfn"
)

// errNoSlot says that neither a frame nor a slot was free just now; both are promised, so the write is tried again.
var errNoSlot = errors.New("mm: no slot is free at the moment")

// patience is how long a write waits for store I/O to free a frame or a slot that is promised to it.
const patience = 30 * time.Second

// Write stores data at off. The host keeps the pages: they enter the system cache's working set. Space is charged for the
// whole write before any of it is stored, so that it is accepted or refused as one; pages that are committed already cost
// nothing and cannot be refused. A page for which no frame is left goes from data straight to a slot. It waits for store
// I/O only. StatusCommitmentLimit: refused for want of space. StatusInPageError, StatusOutPageError: a page could not be
// read or written.
func (g *Segment) Write(off int64, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	g.sys.pressure.enter(g.id)
	defer g.sys.pressure.leave(g.id)
	if g.unmapping.Load() == 0 {
		g.sys.throttle()
	}
	return g.write(off, data, false)
}

// write is Write, with inside for somebody who does not keep the pages.
func (g *Segment) write(off int64, data []byte, inside bool) error {
	first, last := uint64(off)>>PageShift, uint64(off+int64(len(data))-1)>>PageShift
	if first>>viewShift == last>>viewShift {
		return g.writeView(off, data, inside)
	}
	budget, err := g.uncommitted(first, last)
	if err != nil {
		return err
	}
	if err := g.admit(budget); err != nil {
		return err
	}
	if err := g.sys.commit.charge(budget); err != nil {
		return err
	}
	w := newWriting(g, inside)
	w.budget = budget
	defer w.done()
	if err := g.reserveLeaves(first, last); err != nil {
		return err
	}
	for len(data) > 0 {
		n := min(len(data), int((off|(ViewPages*PageSize-1))+1-off))
		if err := w.do(off, data[:n]); err != nil {
			return err
		}
		off += int64(n)
		data = data[n:]
	}
	return nil
}

// reserveLeaves makes the records that pages first..last need, before anything is written.
func (g *Segment) reserveLeaves(first, last uint64) error {
	for key := first >> viewShift; key <= last>>viewShift; key++ {
		upTo := uint(ViewPages)
		if key == last>>viewShift {
			upTo = uint(last%ViewPages) + 1
		}
		err := g.growing(func() error {
			g.mu.Lock()
			defer g.mu.Unlock()
			_, err := g.makeLeaf(key, upTo)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// writing is one Write under way in one view.
type writing struct {
	g      *Segment
	off    int64
	data   []byte
	budget uint64 // pages charged beforehand, which no word has yet
	inside bool   // nobody but us: the host does not keep the pages

	// patched are the whole contents, old bytes and new, of pages that the write covers only in part and that had to be read
	// back without a frame; each is good as long as the page is still of the version that it was read of.
	patched map[uint64]patchedPage
	held    []*ReadSet // pages read back into frames, kept there until the end

	leaf   uint32
	pages  []writePage
	direct []int // of pages, those without a frame
}

type patchedPage struct {
	bytes []byte
	was   version
}

// writePage is one page of a writing.
type writePage struct {
	index uint64
	lo    int // bytes lo..hi of the page are covered, by src
	hi    int
	src   []byte
	whole []byte    // the page's whole new contents, where known: src, or a patched page
	frame pfn.Frame // pinned
	fresh bool      // the frame is new to the page
	zero  bool      // and filled with zeros
	was   pte       // PTE of a page without a valid frame
	at    location  // slot of a direct write
}

var writings = sync.Pool{New: func() any { return new(writing) }}

// newWriting is a writing of the segment, to be ended by done. inside says that nobody but us keeps the pages.
func newWriting(g *Segment, inside bool) *writing {
	w := writings.Get().(*writing)
	w.g, w.inside = g, inside
	return w
}

// done gives back what was charged and is not needed. The writing must not be used afterwards.
func (w *writing) done() {
	if w.budget > 0 {
		w.g.sys.commit.uncharge(w.budget, false)
	}
	*w = writing{pages: w.pages[:0], direct: w.direct[:0]}
	writings.Put(w)
}

// writeView is write in one view, which is done in one go, or not: it needs nothing charged beforehand.
func (g *Segment) writeView(off int64, data []byte, inside bool) error {
	w := newWriting(g, inside)
	defer w.done()
	err := w.do(off, data)
	if err != nil { // it may have made the view's record
		g.mu.Lock()
		g.dropLeafIfEmpty(uint64(off) >> PageShift >> viewShift)
		g.mu.Unlock()
	}
	return err
}

// do stores data, which ends in the view that it begins in.
func (w *writing) do(off int64, data []byte) error {
	w.off, w.data, w.patched = off, data, nil
	defer func() {
		for _, s := range w.held {
			s.Done()
		}
		w.held = nil
		clear(w.pages)
	}()
	var deadline time.Time
	for {
		wait, read, err := w.try()
		switch {
		case err == errGrow:
			if err := w.g.sys.commit.grow(ViewPages); err != nil {
				return err
			}
		case err == errNoSlot:
			switch now := time.Now(); {
			case deadline.IsZero():
				deadline = now.Add(patience)
			case now.After(deadline):
				return StatusOutPageError
			}
			w.g.sys.writer.kick()
			w.g.sys.pressure.stall()
			time.Sleep(time.Millisecond)
			w.g.sys.pressure.resume()
		case err != nil:
			return err
		case wait != nil:
			w.g.sys.await(wait)
		case read != nil:
			if err := w.readBack(*read); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// readBack brings in a page that is to be changed in part: into a frame if one is left, else as a patched copy.
func (w *writing) readBack(page uint64) error {
	g := w.g
	was := g.versionOf(page)
	buf := alignedPage()
	set, err := g.read(int64(page)<<PageShift, PageSize, buf, !w.inside, false)
	if err != nil {
		return err
	}
	if was.kind() != kindCombined && (set.frames[0] != 0 || was.kind() != kindPaged) {
		w.held = append(w.held, set)
		return nil
	}
	copy(buf, set.slices[0])
	set.Done()
	if w.patched == nil {
		w.patched = make(map[uint64]patchedPage)
	}
	for _, p := range w.split() {
		if p.index == page {
			copy(buf[p.lo:p.hi], p.src)
		}
	}
	w.patched[page] = patchedPage{bytes: buf, was: was}
	return nil
}

// pteOf reads one PTE; of a combined page the number, also where it is in a working set.
func (g *Segment) pteOf(page uint64) pte { return g.versionOf(page).pte }

// versionOf is the version of one page.
func (g *Segment) versionOf(page uint64) version {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sys.pfn.Lock()
	defer g.sys.pfn.Unlock()
	id := g.leafAt(page >> viewShift)
	if id == 0 {
		return version{}
	}
	return g.sys.version(g.sys.rec.leaves.At(id), uint(page%ViewPages))
}

// split cuts the write into pages.
func (w *writing) split() []writePage {
	w.pages = w.pages[:0]
	off, data := w.off, w.data
	for len(data) > 0 {
		p := writePage{index: uint64(off) >> PageShift, lo: int(off % PageSize)}
		p.hi = min(PageSize, p.lo+len(data))
		p.src = data[:p.hi-p.lo]
		if len(p.src) == PageSize {
			p.whole = p.src
		}
		w.pages = append(w.pages, p)
		off += int64(len(p.src))
		data = data[len(p.src):]
	}
	return w.pages
}

// try does the write in one go if nothing stands in the way. Otherwise nothing has changed, and it says what to wait for,
// which page to read back, or why it failed.
func (w *writing) try() (wait *pageIO, read *uint64, err error) {
	g, s := w.g, w.g.sys
	w.split()
	w.direct = w.direct[:0]
	key := uint64(w.off) >> PageShift >> viewShift
	lo, hi := uint(w.pages[0].index%ViewPages), uint(w.pages[len(w.pages)-1].index%ViewPages)

	g.mu.Lock()
	if g.deleted {
		g.mu.Unlock()
		return nil, nil, StatusDeleted
	}
	if g.private && !g.allCommitted(g.leafAt(key), w.pages[0].index, w.pages[len(w.pages)-1].index) {
		g.mu.Unlock()
		return nil, nil, StatusNotCommitted
	}
	id, err := g.makeLeaf(key, hi+1)
	if err != nil {
		g.mu.Unlock()
		return nil, nil, err
	}
	l := s.rec.leaves.At(id)
	w.leaf = id

	s.pfn.Lock()
	if wait, read, err = w.obstacle(l); wait != nil || read != nil || err != nil {
		s.pfn.Unlock()
		g.mu.Unlock()
		return wait, read, err
	}
	w.takeFrames(id, l)
	if !w.inside {
		s.mapHost(id, l, pageMask(lo, hi))
	}
	s.pfn.Unlock()

	w.copyIn()

	s.pfn.Lock()
	w.attach(l)
	s.pfn.Unlock()
	if len(w.direct) == 0 {
		g.mu.Unlock()
		return nil, nil, nil
	}
	io := g.beginIO(w.pages[w.direct[0]].index, w.pages[w.direct[len(w.direct)-1]].index)
	g.mu.Unlock()

	err = w.writeDirect()

	g.mu.Lock()
	s.pfn.Lock()
	w.attachDirect(l)
	s.pfn.Unlock()
	g.endIO(io)
	g.mu.Unlock()
	return nil, nil, err
}

// obstacle looks for what stops the write from being done at once. The PFN lock is held.
// +checklocks:w.g.mu
// +checklocks:w.g.sys.pfn.mu
func (w *writing) obstacle(l *leaf) (wait *pageIO, read *uint64, err error) {
	s, resident := w.g.sys, w.g.rule.resident()
	var need, frames uint64
	for i := range w.pages {
		p := &w.pages[i]
		word := s.plain(s.rec.word(l, uint(p.index%ViewPages)))
		switch {
		case word.kind() == kindInIO:
			s.n.collidedFaults.Add(1)
			return w.g.ioOn(p.index), nil, nil
		case (word.kind() == kindPaged || word.kind() == kindCombined) && p.whole == nil:
			if c, ok := w.patched[p.index]; ok && c.was == s.version(l, uint(p.index%ViewPages)) {
				p.whole = c.bytes
			} else {
				return nil, &p.index, nil
			}
		}
		if !word.isCommitted() {
			need++
		}
		if resident && (!word.hasFrame() || s.pfn.Info(word.frame()).State == pfn.Standby) {
			frames++ // one on Standby is its own, and counts as available
		}
	}
	if new := need - min(need, w.budget); new > 0 && resident && new > s.resident.room() {
		return nil, nil, StatusCommitmentLimit // its pages must not leave memory, and there is no room for so many there
	}
	if err := s.topUp(need, &w.budget); err != nil {
		return nil, nil, err
	}
	if resident && s.pfn.Available() < frames {
		return nil, nil, errNoSlot // its pages must not go to a slot: they wait for a frame, which is promised
	}
	return nil, nil, nil
}

// takeFrames pins a frame for each page: the one it has, or a new one. Pages that get none are to be written directly. The
// frames that pages have are pinned first: a new one may be taken from any page that is not. The PFN lock is held.
// +checklocks:w.g.mu
// +checklocks:w.g.sys.pfn.mu
func (w *writing) takeFrames(id uint32, l *leaf) {
	s := w.g.sys
	var soft, fresh uint64
	for i := range w.pages {
		p := &w.pages[i]
		at := uint(p.index % ViewPages)
		if p.was = s.unmapCombined(l, at); p.was.hasFrame() {
			soft += w.g.pin(l, at, p.was)
			p.frame = p.was.frame()
		}
	}
	for i := range w.pages {
		p := &w.pages[i]
		if p.frame != 0 {
			continue
		}
		p.frame, p.zero = s.alloc(makeOwner(id, uint(p.index%ViewPages)), 0, p.whole == nil)
		if p.frame == 0 {
			w.direct = append(w.direct, i)
			continue
		}
		p.fresh = true
		fresh++
		s.pfn.SetPriority(p.frame, w.g.rule.Priority)
	}
	w.g.faults.soft.Add(soft)
	w.g.faults.demandZero.Add(fresh)
	s.n.transitionFaults.Add(soft)
	s.n.demandZeroFaults.Add(fresh)
	s.n.pageFaults.Add(soft + fresh)
}

// copyIn copies the data into the pinned frames, and makes whole pages for direct writes.
// +checklocks:w.g.mu
func (w *writing) copyIn() {
	for i := range w.pages {
		p := &w.pages[i]
		switch {
		case p.frame == 0 && p.whole == nil:
			p.whole = alignedPage()
			copy(p.whole[p.lo:], p.src)
		case p.frame == 0 && !aligned(p.whole):
			b := alignedPage()
			copy(b, p.whole)
			p.whole = b
		case p.frame == 0:
		case p.fresh && p.whole != nil:
			copy(w.g.sys.pfn.Bytes(p.frame), p.whole)
		default:
			b := w.g.sys.pfn.Bytes(p.frame)
			if p.fresh && !p.zero {
				clear(b)
			}
			copy(b[p.lo:], p.src)
		}
	}
}

// attach makes the copied frames valid and dirty, frees the slots they make stale, and marks the pages without a frame
// inIO. The PFN lock is held.
// +checklocks:w.g.mu
// +checklocks:w.g.sys.pfn.mu
func (w *writing) attach(l *leaf) {
	s := w.g.sys
	var attached uint64
	for i := range w.pages {
		p := &w.pages[i]
		at := uint(p.index % ViewPages)
		if p.frame == 0 {
			old := location(0)
			if p.was.kind() == kindPaged {
				old = p.was.location()
			}
			s.rec.set(l, at, inIOPTE(old))
			if p.was.kind() == kindCombined { // the word names it no more, but keeps it until the write has ended
				s.combined.refs--
				s.combined.holds++
			}
		}
		if !p.was.isCommitted() {
			attached++
		}
		if p.frame == 0 {
			continue
		}
		if p.fresh {
			s.dropCopy(p.was)
			s.rec.set(l, at, validPTE(p.frame))
			s.rec.access(l, at)
			s.pfn.MakeValid(p.frame)
		}
		s.freeLocation(location(s.pfn.SetDirty(p.frame)))
		if w.g.rule.resident() {
			_ = s.pfn.Keep(p.frame, w.g.rule.Pinned) // dirty: no store has it
		}
		s.pfn.Unpin(p.frame)
	}
	s.spend(attached, &w.budget)
	w.g.addPages(attached)
}

// writeDirect stores the pages without a frame in slots, in as few writes as the free slots allow. Pages that found no slot
// or could not be written keep at = 0.
func (w *writing) writeDirect() error {
	s := w.g.sys
	for todo := w.compressDirect(); len(todo) > 0; {
		at, got := s.allocSlots(uint64(len(todo)))
		if got == 0 {
			return errNoSlot
		}
		bufs := make([][]byte, got)
		for i := range bufs {
			bufs[i] = w.pages[todo[i]].whole
		}
		f := s.files.at(at.file())
		if err := f.write(at.slot(), bufs); err != nil {
			for i := range got {
				f.free(at.slot() + i)
			}
			s.n.writeErrors.Add(got)
			return StatusOutPageError
		}
		s.n.pageWrites.Add(1)
		s.n.pagesOutput.Add(got)
		s.n.directWrites.Add(got)
		for i := range got {
			w.pages[todo[i]].at = makeLocation(at.file(), at.slot()+i)
		}
		todo = todo[got:]
	}
	return nil
}

// attachDirect gives the pages written directly their new slots; the others get their old PTEs back. The PFN lock is held.
// +checklocks:w.g.mu
// +checklocks:w.g.sys.pfn.mu
func (w *writing) attachDirect(l *leaf) {
	s := w.g.sys
	var detached uint64
	for _, i := range w.direct {
		p := &w.pages[i]
		at := uint(p.index % ViewPages)
		if p.was.kind() == kindCombined {
			s.combined.refs++
			s.combined.holds--
		}
		if p.at == 0 {
			s.rec.set(l, at, p.was)
			if !p.was.isCommitted() {
				detached++
			}
			continue
		}
		s.dropCopy(p.was)
		s.rec.set(l, at, pagedPTE(p.at, pfn.Unplaced))
	}
	s.unspend(detached, &w.budget)
	w.g.removePages(detached)
}

// dropCopy notes that a page whose PTE was w has new bytes: its slot is free, and it shares no combined page any more. The PFN
// lock is held.
// +checklocks:s.pfn.mu
func (s *System) dropCopy(w pte) {
	switch w.kind() {
	case kindPaged:
		s.freeLocation(w.location())
	case kindCombined:
		s.dropCombined(w.number())
		s.n.writeCopies.Add(1)
	}
}
